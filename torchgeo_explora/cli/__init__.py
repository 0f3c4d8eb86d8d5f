"""The command ``torchgeo-explora``: the whole job for people with a folder of images."""

from torchgeo_explora.cli.main import main

__all__ = ['main']
