"""Data modules in TorchGeo's form, whose batches are neither normalised nor augmented."""

from ._sampler import ResumableSampler
from .eurosat import EuroSATRGBDataModule
from .fmow import FMoWRGBDataModule, FMoWSentinelDataModule, FMoWTemporalDataModule
from .folder import FolderDataModule

__all__ = [
    'EuroSATRGBDataModule',
    'FMoWRGBDataModule',
    'FMoWSentinelDataModule',
    'FMoWTemporalDataModule',
    'FolderDataModule',
    'ResumableSampler',
]
