"""Fixed encodings against their equations, number by number, and what they are good for."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from torchgeo_explora._typing import GridSize
from torchgeo_explora.layers.sincos import encode_times, sincos, sincos_grid, sincos_index


def _slow(value: float, dim: int) -> list[float]:
    """Vaswani et al. 2017, section 3.5: all sines, then all cosines."""
    half = dim // 2
    angles = [value / 10000 ** (i / half) for i in range(half)]
    return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]


@given(st.lists(st.floats(-30, 300), min_size=1, max_size=4), st.integers(1, 9))
def test_the_equation(values: list[float], half: int) -> None:
    found = sincos(torch.tensor(values, dtype=torch.float64), 2 * half)
    expected = torch.tensor([_slow(value, 2 * half) for value in values], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_likeness_depends_on_the_distance_alone() -> None:
    codes = sincos(torch.arange(12, dtype=torch.float64), 32)
    likeness = codes @ codes.T
    for distance in range(12):
        along = likeness.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along))


def test_grid_has_the_column_first_and_rows_one_after_the_other() -> None:
    grid, dim = GridSize(height=3, width=5), 12
    table = sincos_grid(grid, dim, num_prefix=2)
    assert table.dtype == torch.float32
    assert torch.equal(table[0, :2], torch.zeros(2, dim))
    for row in range(3):
        for column in range(5):
            expected = torch.tensor(_slow(column, dim // 2) + _slow(row, dim // 2))
            torch.testing.assert_close(table[0, 2 + row * 5 + column], expected)


def test_numbers_of_groups() -> None:
    expected = torch.tensor([[_slow(index, 6) for index in range(4)]])
    torch.testing.assert_close(sincos_index(4, 6), expected)


def test_times_are_year_month_and_hour_side_by_side() -> None:
    times = torch.tensor([[[14.0, 3.0, 9.0]], [[0.0, 11.0, 23.0]]])
    found = encode_times(times, 24)
    for row in range(2):
        expected = [x for part in times[row, 0].tolist() for x in _slow(part, 8)]
        torch.testing.assert_close(found[row, 0], torch.tensor(expected))
