"""What a model's features are like, block by block: functions that return arrays, and reports.

The three measurements by which ExPLoRA's authors explain it (eigenvalues of patch features, how
much a patch tells of its position, and of the image's class), effective ranks, similarity of
blocks, attention maps, and pictures of principal components. Source: Khanna et al., ICML 2025,
section 6.3, and the project page.
"""

from torchgeo_explora.analysis.attention import class_attention, enlarge, has_class_attention
from torchgeo_explora.analysis.features import block_patches, patch_features
from torchgeo_explora.analysis.html import Page
from torchgeo_explora.analysis.pca import PCAMaps, pca_maps
from torchgeo_explora.analysis.probes import TokenProbeConfig, TokenProbeScore, token_probe
from torchgeo_explora.analysis.similarity import cka_matrix
from torchgeo_explora.analysis.spectra import (
    covariance_eigenvalues,
    patch_eigenvalues,
    spectral_rank,
)
from torchgeo_explora.analysis.study import AnalysisConfig, BlockMeasures, measure_model

__all__ = [
    'AnalysisConfig',
    'BlockMeasures',
    'PCAMaps',
    'Page',
    'TokenProbeConfig',
    'TokenProbeScore',
    'block_patches',
    'cka_matrix',
    'class_attention',
    'covariance_eigenvalues',
    'enlarge',
    'has_class_attention',
    'measure_model',
    'patch_eigenvalues',
    'patch_features',
    'pca_maps',
    'spectral_rank',
    'token_probe',
]
