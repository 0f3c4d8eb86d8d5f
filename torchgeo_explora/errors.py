"""Errors that a user can act on.

Each message says what was received, what is allowed, and what to do. The command line prints
the message alone and exits with status 2; a traceback means a defect of this package.
"""


class ExploraError(ValueError):
    """Base class of every error that is caused by the user's input."""


class ConfigError(ExploraError):
    """An argument or a combination of arguments is not possible."""


class WeightsError(ExploraError):
    """A weights file cannot be read, is unsafe, or does not fit the model."""


class ImageError(ExploraError):
    """An image, or a folder of images, cannot be used."""


class LabelError(ExploraError):
    """Polygons or masks cannot be used as labels."""


class OutputError(ExploraError):
    """A result cannot be written."""


class CollapseError(ExploraError):
    """The representation collapsed during training."""
