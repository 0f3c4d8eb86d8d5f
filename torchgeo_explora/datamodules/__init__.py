"""Data modules in TorchGeo's form, whose batches are neither normalised nor augmented."""

from ._sampler import ResumableSampler
from .eurosat import EuroSATDataModule, EuroSATRGBDataModule
from .fmow import FMoWRGBDataModule, FMoWSentinelDataModule, FMoWTemporalDataModule
from .folder import FolderDataModule
from .geotiff import GeoTIFFDataModule, LabelledGeoTIFFDataModule
from .naip import NAIPChesapeakeDataModule, NAIPDataModule
from .naip_landcover import NAIPLandCoverDataModule
from .resisc45 import RESISC45DataModule
from .spacenet1 import SpaceNet1DataModule
from .vector_segmentation import VectorSegmentationDataModule
from .wilds import Camelyon17DataModule, IWildCamDataModule

__all__ = [
    'Camelyon17DataModule',
    'EuroSATDataModule',
    'EuroSATRGBDataModule',
    'FMoWRGBDataModule',
    'FMoWSentinelDataModule',
    'FMoWTemporalDataModule',
    'FolderDataModule',
    'GeoTIFFDataModule',
    'IWildCamDataModule',
    'LabelledGeoTIFFDataModule',
    'NAIPChesapeakeDataModule',
    'NAIPDataModule',
    'NAIPLandCoverDataModule',
    'RESISC45DataModule',
    'ResumableSampler',
    'SpaceNet1DataModule',
    'VectorSegmentationDataModule',
]
