"""Data sets that TorchGeo has no place for; samples are dictionaries, as TorchGeo's are."""

from .image_folder import ImageFolder
from .synthetic import SyntheticScenes

__all__ = ['ImageFolder', 'SyntheticScenes']
