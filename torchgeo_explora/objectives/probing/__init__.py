"""Frozen-feature evaluation: extract features once, then probe them linearly or by neighbours."""

from torchgeo_explora.objectives.probing.cache import (
    batches_hash,
    load_features,
    save_features,
    weights_hash,
)
from torchgeo_explora.objectives.probing.features import (
    Features,
    Progress,
    extract_features,
    image_features,
)
from torchgeo_explora.objectives.probing.linear import (
    ClassifierScore,
    LinearProbeConfig,
    LinearProbeResult,
    ProbeBank,
    StackedSGD,
    cosine_to_zero,
    linear_probe,
    sample_stream,
    train_bank,
    with_test_scores,
)
from torchgeo_explora.objectives.probing.logistic import LogisticResult, logistic_regression
from torchgeo_explora.objectives.probing.neighbours import KNNResult, knn, knn_votes

__all__ = [
    'ClassifierScore',
    'Features',
    'KNNResult',
    'LinearProbeConfig',
    'LinearProbeResult',
    'LogisticResult',
    'ProbeBank',
    'Progress',
    'StackedSGD',
    'batches_hash',
    'cosine_to_zero',
    'extract_features',
    'image_features',
    'knn',
    'knn_votes',
    'linear_probe',
    'load_features',
    'logistic_regression',
    'sample_stream',
    'save_features',
    'train_bank',
    'weights_hash',
    'with_test_scores',
]
