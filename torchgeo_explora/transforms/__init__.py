"""Augmentation and normalisation of batches, on the device that the images are on."""

from .joint import JointTransform
from .multicrop import Crops, MultiCrop
from .normalize import IMAGENET_MEAN, IMAGENET_STD, EvalTransform, Normalize
from .spectral import SpectralAugmentation
from .temporal import RandomResizedCrop
from .turns import TrainingViews, quarter_turns

__all__ = [
    'IMAGENET_MEAN',
    'IMAGENET_STD',
    'Crops',
    'EvalTransform',
    'JointTransform',
    'MultiCrop',
    'Normalize',
    'RandomResizedCrop',
    'SpectralAugmentation',
    'TrainingViews',
    'quarter_turns',
]
