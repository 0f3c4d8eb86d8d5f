"""Tasks and callbacks for ``torchgeo fit``, ``validate``, ``test`` and ``predict``."""

from torchgeo_explora.tasks.callbacks import CollapseGuard, FeatureHealth, OnlineKNN
from torchgeo_explora.tasks.classification import LoRAClassification
from torchgeo_explora.tasks.curve import LossCurve
from torchgeo_explora.tasks.dinov2 import ExPLoRADINOv2
from torchgeo_explora.tasks.knn import KNN
from torchgeo_explora.tasks.linear_probe import LinearProbe
from torchgeo_explora.tasks.logger import ResumableCSVLogger
from torchgeo_explora.tasks.mae import ExPLoRAMAE
from torchgeo_explora.tasks.metrics import OfficialMetric, official_metrics
from torchgeo_explora.tasks.predictions import PredictionWriter
from torchgeo_explora.tasks.reconstructions import Reconstructions
from torchgeo_explora.tasks.record import RunRecorder
from torchgeo_explora.tasks.report import TestReport
from torchgeo_explora.tasks.segmentation import LoRASemanticSegmentation

__all__ = [
    'KNN',
    'CollapseGuard',
    'ExPLoRADINOv2',
    'ExPLoRAMAE',
    'FeatureHealth',
    'LinearProbe',
    'LoRAClassification',
    'LoRASemanticSegmentation',
    'LossCurve',
    'OfficialMetric',
    'OnlineKNN',
    'PredictionWriter',
    'Reconstructions',
    'ResumableCSVLogger',
    'RunRecorder',
    'TestReport',
    'official_metrics',
]
