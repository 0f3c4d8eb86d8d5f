"""Shapes in signatures are executed while tests run."""

import jaxtyping
import pytest
import torch

from torchgeo_explora._typing import GridSize
from torchgeo_explora.layers.pos_embed import resample_pos_embed


def test_wrong_rank_raises() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match='pos_embed'):
        resample_pos_embed(torch.zeros(5, 8), GridSize(2, 2), 1)


def test_right_rank_passes() -> None:
    assert resample_pos_embed(torch.zeros(1, 5, 8), GridSize(3, 2), 1).shape == (1, 7, 8)
