"""Windows and weights, on every shape that Hypothesis finds."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.inference.blending import axis_weights, taper, weight_sum
from torchgeo_explora.inference.windows import (
    Axis,
    Extent,
    Interval,
    WindowGrid,
    centred_windows,
    overlapping_windows,
)


@st.composite
def axes(draw: st.DrawFn, longest: int = 300) -> Axis:
    length, size = draw(st.integers(1, longest)), draw(st.integers(1, 64))
    if draw(st.booleans()):
        return overlapping_windows(length, size, draw(st.integers(0, size - 1)))
    return centred_windows(length, size, draw(st.integers(1, size)))


def _pixels(interval: Interval) -> set[int]:
    return set(range(interval.first, interval.stop))


@given(axes())
def test_every_pixel_is_decided_by_a_window_that_sees_it(axis: Axis) -> None:
    decided = set[int]()
    for span in axis.spans:
        assert span.output.length > 0
        assert span.start <= span.output.first
        assert span.output.stop <= min(span.start + axis.size, axis.length)
        decided |= _pixels(span.output)
    assert decided == set(range(axis.length))


@given(axes())
def test_windows_are_in_order_and_inside_the_raster(axis: Axis) -> None:
    starts = [span.start for span in axis.spans]
    assert starts == sorted(starts)
    assert starts[0] == 0
    assert starts[-1] == max(axis.length - axis.size, 0)
    firsts = [span.output.first for span in axis.spans]
    assert firsts == sorted(set(firsts))


@given(st.integers(1, 300), st.integers(1, 64), st.data())
def test_neighbours_overlap_as_asked(length: int, size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, size - 1))
    spans = overlapping_windows(length, size, overlap).spans
    shared = [a.output.clip(b.output).length for a, b in itertools.pairwise(spans)]
    assert all(length >= overlap for length in shared)
    assert all(length == overlap for length in shared[:-1])  # only the last is moved back


@given(axes())
def test_cells_of_centred_windows_tile_the_axis(axis: Axis) -> None:
    cells = centred_windows(axis.length, axis.size, max(1, axis.size // 2))
    assert sum(span.output.length for span in cells.spans) == axis.length


@given(axes(), st.integers(1, 400))
def test_pieces_cover_the_axis_once(axis: Axis, limit: int) -> None:
    pieces = axis.cut(limit)
    assert pieces[0].first == 0
    assert pieces[-1].stop == axis.length
    assert all(a.stop == b.first for a, b in itertools.pairwise(pieces))
    longest = max(
        b.output.first - a.output.first for a, b in itertools.pairwise(axis.spans)
    ) if len(axis.spans) > 1 else 0  # fmt: skip
    last = axis.length - axis.spans[-1].output.first
    assert all(0 < piece.length <= max(limit, longest, last) for piece in pieces)
    if limit >= axis.length:
        assert len(pieces) == 1


@given(axes(), st.data())
def test_touching_windows_are_those_of_a_plain_search(axis: Axis, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, axis.length - 1))
    core = Interval(first, data.draw(st.integers(first + 1, axis.length)))
    plain = tuple(span for span in axis.spans if span.output.clip(core).length > 0)
    assert axis.touching(core) == plain


@given(axes(longest=60), axes(longest=60), st.integers(1, 80), st.integers(1, 80))
def test_blocks_cover_the_raster_once(rows: Axis, columns: Axis, height: int, width: int) -> None:
    grid = WindowGrid(rows, columns)
    covered = np.zeros((rows.length, columns.length), dtype=int)
    for block in grid.blocks(Extent(height, width)):
        covered[block.rows.within(0), block.columns.within(0)] += 1
        assert grid.windows_in(block) > 0
    assert (covered == 1).all()


@given(axes(), st.integers(1, 100))
def test_weights_are_positive_and_sum_as_added_one_by_one(axis: Axis, limit: int) -> None:
    weights, plain = axis_weights(axis), np.zeros(axis.length, dtype=np.int64)
    assert weights.min() >= 1
    for span in axis.spans:
        plain[span.output.within(0)] += weights[: span.output.length]
    parts = [weight_sum(axis, core) for core in axis.cut(limit)]
    np.testing.assert_array_equal(np.concatenate(parts), plain)
    assert plain.min() >= 1


@given(st.integers(1, 64), st.data())
def test_regular_overlaps_have_a_constant_sum(size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, size // 2))
    axis = overlapping_windows(size + 5 * (size - overlap), size, overlap)
    inner = weight_sum(axis, Interval(size - overlap, 5 * (size - overlap)))
    assert np.ptp(inner[overlap:]) <= 1  # the plateau is `overlap`, the sum of two ramps one more


@given(st.integers(1, 100), st.integers(0, 100))
def test_taper_is_symmetric_and_falls_towards_its_ends(size: int, ramp: int) -> None:
    weights = taper(size, ramp)
    np.testing.assert_array_equal(weights, weights[::-1])
    rising = np.diff(weights[: (size + 1) // 2])
    assert ((rising == 0) | (rising == 1)).all()
    assert weights[0] == 1


@pytest.mark.parametrize(('size', 'overlap'), [(16, 16), (16, -1), (0, 0)])
def test_impossible_overlaps_are_refused(size: int, overlap: int) -> None:
    with pytest.raises(ConfigError, match=r'pixels'):
        overlapping_windows(100, size, overlap)


@pytest.mark.parametrize('stride', [0, 17])
def test_impossible_strides_are_refused(stride: int) -> None:
    with pytest.raises(ConfigError, match='choose 1 to 16'):
        centred_windows(100, 16, stride)
