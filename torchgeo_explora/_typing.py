"""Frozen values for pairs that would otherwise be indexed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GridSize:
    """Number of patches along the two sides of an image.

    Args:
        height: Patches from top to bottom.
        width: Patches from left to right.
    """

    height: int
    width: int

    @property
    def area(self) -> int:
        """Number of patches in the grid."""
        return self.height * self.width


@dataclass(frozen=True)
class PatchSize:
    """Size of one patch in pixels.

    Args:
        height: Pixels from top to bottom.
        width: Pixels from left to right.
    """

    height: int
    width: int

    @property
    def area(self) -> int:
        """Number of pixels in the patch."""
        return self.height * self.width
