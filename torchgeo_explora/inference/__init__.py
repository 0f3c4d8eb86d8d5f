"""Rasters in, maps out: bounded memory, exact georeferencing, seamless blending, resumable.

The pipeline reads in threads, fills batches across windows and files, averages overlapping windows
with whole-number weights, and writes cloud-optimised GeoTIFFs in the grids of the rasters.
"""

from torchgeo_explora.inference.embed import EmbedSettings, embed_rasters
from torchgeo_explora.inference.fit import Fit, fit_raster
from torchgeo_explora.inference.pipeline import Tally
from torchgeo_explora.inference.predict import PredictSettings, predict_rasters
from torchgeo_explora.inference.raster import Georeference, RasterInfo, read_info
from torchgeo_explora.inference.ray_engine import RayCluster
from torchgeo_explora.inference.run import Summary
from torchgeo_explora.inference.shards import Shard
from torchgeo_explora.inference.similar import Found, SimilarSettings, find_similar

__all__ = [
    'EmbedSettings',
    'Fit',
    'Found',
    'Georeference',
    'PredictSettings',
    'RasterInfo',
    'RayCluster',
    'Shard',
    'SimilarSettings',
    'Summary',
    'Tally',
    'embed_rasters',
    'find_similar',
    'fit_raster',
    'predict_rasters',
    'read_info',
]
