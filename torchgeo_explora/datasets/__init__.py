"""Data sets that TorchGeo has no place for; samples are dictionaries, as TorchGeo's are."""

from .image_folder import ImageFolder

__all__ = ['ImageFolder']
