"""Data sets that TorchGeo has no place for; samples are dictionaries, as TorchGeo's are."""

from ._bands import SATMAE_BANDS, SENTINEL2_BANDS, canonical_band, satmae_scale
from ._crops import Cropping
from .camelyon17 import Camelyon17
from .fmow_rgb import FMoWRGB
from .fmow_sentinel import FMoWSentinel
from .fmow_temporal import FMoWTemporal
from .geotiff_folder import GeoTIFFFolder
from .image_folder import ImageFolder
from .iwildcam import IWildCam
from .labelled_windows import LabelledWindows
from .naip_landcover import NAIPLandCover
from .synthetic import SyntheticScenes
from .vector_segmentation import VectorSegmentation

__all__ = [
    'SATMAE_BANDS',
    'SENTINEL2_BANDS',
    'Camelyon17',
    'Cropping',
    'FMoWRGB',
    'FMoWSentinel',
    'FMoWTemporal',
    'GeoTIFFFolder',
    'IWildCam',
    'ImageFolder',
    'LabelledWindows',
    'NAIPLandCover',
    'SyntheticScenes',
    'VectorSegmentation',
    'canonical_band',
    'satmae_scale',
]
