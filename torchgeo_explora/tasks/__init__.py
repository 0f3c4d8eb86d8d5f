"""Tasks and callbacks for ``torchgeo fit``, ``validate`` and ``test``."""

from torchgeo_explora.tasks.callbacks import CollapseGuard, FeatureHealth, OnlineKNN
from torchgeo_explora.tasks.dinov2 import ExPLoRADINOv2
from torchgeo_explora.tasks.knn import KNN
from torchgeo_explora.tasks.linear_probe import LinearProbe

__all__ = [
    'KNN',
    'CollapseGuard',
    'ExPLoRADINOv2',
    'FeatureHealth',
    'LinearProbe',
    'OnlineKNN',
]
