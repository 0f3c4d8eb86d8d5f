"""Structures of synthetic scenes: where each kind of surface lies, and how its brightness varies.

A structure knows nothing of colours or sensors. Every function draws all it needs from the generator
it is given, on a canvas whose coordinates run in pixels, and returns the same two maps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import cache

import numpy as np
from numpy.typing import NDArray

type Map = NDArray[np.float32]


class Surface(IntEnum):
    """Kinds of ground; a palette gives each a colour."""

    VEGETATION = 0
    SOIL = 1
    BUILT = 2
    WATER = 3


@dataclass(frozen=True)
class Structure:
    """What lies where.

    Args:
        cover: Surface of every pixel, (size, size) integers.
        relief: Relative brightness of every pixel, around 0, (size, size).
    """

    cover: NDArray[np.int64]
    relief: Map


@dataclass(frozen=True)
class Canvas:
    """Square of pixels with coordinates turned by a drawn angle.

    Args:
        size: Side in pixels.
        scale: Size of structures relative to the source domain's.
        u: Coordinate along the drawn direction, in source pixels, 0 at the centre.
        v: Coordinate across it.
    """

    size: int
    scale: float
    u: Map
    v: Map


def draw_canvas(rng: np.random.Generator, size: int, scale: float) -> Canvas:
    """A canvas turned by a uniform angle and shifted by a few pixels."""
    angle = rng.uniform(0, np.pi)
    axis = (np.arange(size, dtype=np.float32) - (size - 1) / 2) / scale
    x, y = axis + rng.uniform(-4, 4), axis[:, None] + rng.uniform(-4, 4)
    cosine, sine = np.cos(angle), np.sin(angle)
    u, v = cosine * x + sine * y, cosine * y - sine * x
    return Canvas(size, scale, u.astype(np.float32), v.astype(np.float32))


@cache
def _interpolation(size: int, cells: int) -> Map:
    """(size, cells + 1) matrix that interpolates smoothly between equally spaced values."""
    position = np.linspace(0, cells, size, endpoint=False)
    cell = position.astype(int)
    weight = position - cell
    weight = weight * weight * (3 - 2 * weight)
    matrix = np.zeros((size, cells + 1), dtype=np.float32)
    matrix[np.arange(size), cell] = 1 - weight
    matrix[np.arange(size), cell + 1] += weight
    return matrix


def noise(rng: np.random.Generator, size: int, cells: int, octaves: int = 2) -> Map:
    """Value noise of about unit standard deviation, (size, size).

    Args:
        rng: Generator.
        size: Side in pixels.
        cells: Cells along a side of the coarsest octave.
        octaves: Number of octaves, each with twice the cells and half the amplitude.
    """
    total = np.zeros((size, size), dtype=np.float32)
    for octave in range(octaves):
        count = cells * 2**octave
        values = rng.standard_normal((count + 1, count + 1)).astype(np.float32)
        matrix = _interpolation(size, count)
        total += 0.5**octave * (matrix @ values @ matrix.T)
    return total / total.std()


def _ground(rng: np.random.Generator, size: int) -> Structure:
    """Open land in large patches of vegetation and soil: background of several classes."""
    patches = noise(rng, size, 3)
    cover = np.where(patches > rng.uniform(-0.8, 0.8), Surface.VEGETATION, Surface.SOIL)
    return Structure(cover.astype(np.int64), 0.06 * noise(rng, size, 10))


def fields(rng: np.random.Generator, canvas: Canvas) -> Structure:
    """Rectangular parcels of their own brightness, some with furrows."""
    along, across = rng.uniform(14, 26), rng.uniform(9, 16)
    row = np.floor(canvas.v / across).astype(int)
    column = np.floor(canvas.u / along + 0.37 * row).astype(int)
    parcel = (row * 7919 + column * 104729) % 64
    kind = rng.choice([Surface.VEGETATION, Surface.SOIL], size=64, p=[0.6, 0.4])
    bright = rng.uniform(-0.25, 0.25, size=64)
    furrow = rng.uniform(0, 0.12, size=64) * (rng.random(64) < 0.5)
    wave = np.sin(2 * np.pi * canvas.v / rng.uniform(2.6, 3.6))
    relief = bright[parcel] + furrow[parcel] * wave + 0.03 * noise(rng, canvas.size, 16)
    return Structure(kind[parcel].astype(np.int64), relief.astype(np.float32))


def _crowns(rng: np.random.Generator, canvas: Canvas, radius: float) -> Map:
    """Rounded tree tops in a jittered grid, from 0 between them to 1 at a top."""
    pitch = 1.5 * radius
    i, j = np.floor(canvas.u / pitch).astype(int), np.floor(canvas.v / pitch).astype(int)
    jitter = rng.uniform(0.1, 0.9, size=(2, 97))
    height = rng.uniform(0.6, 1.0, size=97)
    top = np.zeros_like(canvas.u)
    for a in (-1, 0, 1):
        for b in (-1, 0, 1):
            tree = ((i + a) * 31 + (j + b) * 17) % 97
            du = canvas.u - (i + a + jitter[0][tree]) * pitch
            dv = canvas.v - (j + b + jitter[1][tree]) * pitch
            dome = height[tree] * (1 - (du * du + dv * dv) / radius**2)
            top = np.maximum(top, dome)
    return top


def forest(rng: np.random.Generator, canvas: Canvas) -> Structure:
    """Closed canopy of tree crowns of irregular place and size, with a few clearings."""
    top = _crowns(rng, canvas, rng.uniform(2.2, 3.6))
    clearing = noise(rng, canvas.size, 3) > rng.uniform(1.2, 2.4)
    cover = np.where(clearing, Surface.SOIL, Surface.VEGETATION)
    relief = np.where(clearing, 0.0, 0.55 * top - 0.3)
    return Structure(cover.astype(np.int64), relief.astype(np.float32))


def lake(rng: np.random.Generator, canvas: Canvas) -> Structure:
    """A body of water with a wavy shore, and open land around it."""
    ground = _ground(rng, canvas.size)
    distance = np.hypot(canvas.u * rng.uniform(0.7, 1.0), canvas.v)
    shore = rng.uniform(15, 26) + 4 * noise(rng, canvas.size, 4)
    wet = distance < shore
    relief = np.where(wet, 0.02 * noise(rng, canvas.size, 6), ground.relief)
    return Structure(np.where(wet, Surface.WATER, ground.cover), relief.astype(np.float32))


def urban(rng: np.random.Generator, canvas: Canvas) -> Structure:
    """Blocks of buildings of different brightness between streets, with green yards."""
    block, street = rng.uniform(11, 17), rng.uniform(1.8, 3.0)
    lots = rng.integers(2, 4)
    u, v = canvas.u % block, canvas.v % block
    on_street = (u < street) | (v < street)
    lot = (block - street) / lots
    i, j = np.floor((u - street) / lot).astype(int), np.floor((v - street) / lot).astype(int)
    home = (
        np.floor(canvas.u / block).astype(int) * 53
        + np.floor(canvas.v / block).astype(int) * 29
        + i * 7
        + j * 3
    ) % 89
    inside = (((u - street) % lot) > 0.9) & (((v - street) % lot) > 0.9)
    house = inside & ~on_street & (rng.random(89) < 0.8)[home]
    yard = np.where(rng.random(89) < 0.6, Surface.VEGETATION, Surface.SOIL)[home]
    cover = np.where(on_street | house, Surface.BUILT, yard)
    roof = rng.uniform(-0.1, 0.6, size=89)[home]
    relief = np.where(house, roof, np.where(on_street, -0.25, 0.0))
    return Structure(cover.astype(np.int64), relief.astype(np.float32))


def road(rng: np.random.Generator, canvas: Canvas) -> Structure:
    """One or two narrow, nearly straight roads through open land."""
    ground = _ground(rng, canvas.size)
    bend = rng.uniform(-0.006, 0.006)
    width = rng.uniform(2.0, 3.4) / 2
    paved = np.abs(canvas.v - bend * canvas.u**2) < width
    if rng.random() < 0.5:
        slope, place = rng.uniform(-0.6, 0.6), rng.uniform(-12, 12)
        paved |= np.abs(canvas.u - slope * canvas.v - place) < 0.8 * width
    relief = np.where(paved, rng.uniform(-0.2, 0.2), ground.relief)
    return Structure(np.where(paved, Surface.BUILT, ground.cover), relief.astype(np.float32))


def river(rng: np.random.Generator, canvas: Canvas) -> Structure:
    """A meandering river of changing width through open land."""
    ground = _ground(rng, canvas.size)
    swing, length = rng.uniform(5, 11), rng.uniform(26, 46)
    phase = rng.uniform(0, 2 * np.pi, size=2)
    turn = 2 * np.pi * canvas.u / length
    centre = swing * np.sin(turn + phase[0]) + 2.5 * np.sin(2.3 * turn + phase[1])
    width = rng.uniform(3.0, 5.0) + 0.8 * np.sin(0.7 * turn + phase[1])
    wet = np.abs(canvas.v - centre) < width
    relief = np.where(wet, 0.02 * noise(rng, canvas.size, 6), ground.relief)
    return Structure(np.where(wet, Surface.WATER, ground.cover), relief.astype(np.float32))


def orchard(rng: np.random.Generator, canvas: Canvas) -> Structure:
    """Trees in straight rows at equal distances on soil or grass."""
    pitch = rng.uniform(5.0, 7.0)
    radius = pitch * rng.uniform(0.28, 0.36)
    du = canvas.u % pitch - pitch / 2
    dv = canvas.v % (1.15 * pitch) - 1.15 * pitch / 2
    near = (du * du + dv * dv) / radius**2
    tree = near < 1
    floor = Surface.SOIL if rng.random() < 0.7 else Surface.VEGETATION
    cover = np.where(tree, Surface.VEGETATION, floor)
    relief = np.where(tree, 0.1 - 0.4 * near, 0.22 + 0.05 * noise(rng, canvas.size, 8))
    return Structure(cover.astype(np.int64), relief.astype(np.float32))


def pivots(rng: np.random.Generator, canvas: Canvas) -> Structure:
    """Circular fields of centre-pivot irrigation, some of them in sectors, on open land."""
    ground = _ground(rng, canvas.size)
    radius = rng.uniform(10, 15)
    pitch = 2 * radius + rng.uniform(1, 4)
    i, j = (
        np.floor(canvas.u / pitch + 0.5).astype(int),
        np.floor(canvas.v / pitch + 0.5).astype(int),
    )
    du, dv = canvas.u - i * pitch, canvas.v - j * pitch
    field = (i * 13 + j * 5) % 23
    watered = (np.hypot(du, dv) < radius) & ((rng.random(23) < 0.85)[field] | ((i == 0) & (j == 0)))
    angle = np.arctan2(dv, du)
    sector = (angle > rng.uniform(-3, 0, size=23)[field]) & (
        angle < rng.uniform(0, 3, size=23)[field]
    )
    kind = np.where((rng.random(23) < 0.4)[field] & sector, Surface.SOIL, Surface.VEGETATION)
    bright = rng.uniform(-0.3, 0.1, size=23)[field] + 0.05 * np.sin(2 * np.hypot(du, dv))
    cover = np.where(watered, kind, ground.cover)
    return Structure(cover, np.where(watered, bright, ground.relief + 0.15).astype(np.float32))


STRUCTURES: dict[str, Callable[[np.random.Generator, Canvas], Structure]] = {
    'fields': fields,
    'forest': forest,
    'lake': lake,
    'orchard': orchard,
    'pivots': pivots,
    'river': river,
    'road': road,
    'urban': urban,
}
"""Classes of synthetic scenes, in alphabetical order, as class folders are."""
