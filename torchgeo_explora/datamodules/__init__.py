"""Data modules in TorchGeo's form, whose batches are neither normalised nor augmented."""

from ._sampler import ResumableSampler
from .eurosat import EuroSATDataModule, EuroSATRGBDataModule
from .fmow import FMoWRGBDataModule, FMoWSentinelDataModule, FMoWTemporalDataModule
from .folder import FolderDataModule

__all__ = [
    'EuroSATDataModule',
    'EuroSATRGBDataModule',
    'FMoWRGBDataModule',
    'FMoWSentinelDataModule',
    'FMoWTemporalDataModule',
    'FolderDataModule',
    'ResumableSampler',
]
