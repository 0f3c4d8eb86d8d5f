"""Synthetic scenes: seeds, balance, the shift between the domains, georeferenced files."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.crs import CRS

from torchgeo_explora.datasets import ImageFolder, SyntheticScenes
from torchgeo_explora.errors import ConfigError, OutputError


def test_a_scene_depends_on_its_number_seed_and_domain_alone() -> None:
    few, many = SyntheticScenes(9, seed=3), SyntheticScenes(20, seed=3)
    assert torch.equal(few.images, many.images[:9])
    for other in (SyntheticScenes(9, seed=4), SyntheticScenes(9, 'target', seed=3)):
        assert not (few.images == other.images).flatten(1).all(1).any()


def test_samples_and_balance() -> None:
    scenes = SyntheticScenes(24, size=32)
    assert len(scenes.classes) == 8 and scenes.classes == sorted(scenes.classes)
    assert scenes.labels.bincount().tolist() == [3] * 8
    sample = scenes[5]
    assert sample['image'].shape == (3, 32, 32) and sample['image'].dtype == torch.float32
    assert torch.equal(sample['image'] * 255, scenes.images[5].float())
    assert int(sample['label']) == 5


def test_no_scene_is_blank() -> None:
    for domain in ('source', 'target'):
        images = SyntheticScenes(64, domain).images.float() / 255
        assert float(images.std(dim=(2, 3)).mean(1).min()) > 0.015


def _colour_accuracy(train: SyntheticScenes, test: SyntheticScenes) -> float:
    """Nearest class mean of the mean colours."""
    colour = [scenes.images.float().mean((2, 3)) for scenes in (train, test)]
    centres = torch.stack([colour[0][train.labels == c].mean(0) for c in range(8)])
    nearest = torch.cdist(colour[1], centres).argmin(1)
    return (nearest == test.labels).float().mean().item()


def test_colour_helps_in_the_source_but_does_not_carry_over() -> None:
    source = [SyntheticScenes(240, seed=seed) for seed in (0, 1)]
    target = SyntheticScenes(240, 'target', seed=1)
    within, across = _colour_accuracy(*source), _colour_accuracy(source[0], target)
    assert 2 / 8 < within < 7 / 8
    assert across < within - 0.1


def test_domains_differ_in_contrast_and_sharpness() -> None:
    pairs = [SyntheticScenes(160, domain).images.float() for domain in ('source', 'target')]
    contrast = [images.std(dim=(2, 3)).mean().item() for images in pairs]
    assert contrast[1] < 0.8 * contrast[0]


def test_written_scenes_read_back(tmp_path: Path) -> None:
    scenes = SyntheticScenes(70, 'target', size=16)
    paths = scenes.write_scenes(tmp_path / 'scenes')
    assert not [path for path in (tmp_path / 'scenes').rglob('*') if path.name.startswith('.')]
    dataset = ImageFolder(tmp_path / 'scenes')
    assert dataset.classes == scenes.classes
    by_path = {header.path: index for index, header in enumerate(dataset.headers)}
    for index in (0, 9, 69):
        assert torch.equal(dataset[by_path[paths[index]]]['image'], scenes[index]['image'])
    with rasterio.open(paths[65]) as source:
        assert source.crs == CRS.from_epsg(32736)
        assert source.transform == scenes.transform(65)
        assert source.descriptions == ('red', 'green', 'blue')
        assert source.bounds.left == 500_000 + 160 and source.bounds.top == 5_000_000 - 160


def test_scenes_lie_side_by_side() -> None:
    scenes = SyntheticScenes(1, size=32)
    origins = np.array([(t.c, t.f) for t in map(scenes.transform, range(200))])
    steps = np.unique(np.diff(np.unique(origins[:, 0])))
    assert len(np.unique(origins, axis=0)) == 200 and steps.tolist() == [320.0]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / 'mine.txt').write_text('keep')
    with pytest.raises(OutputError, match='there already'):
        SyntheticScenes(1).write_scenes(tmp_path)
    assert (tmp_path / 'mine.txt').read_text() == 'keep'


@pytest.mark.parametrize(
    'arguments', [{'count': 0}, {'size': 8}, {'seed': -1}, {'domain': 'elsewhere'}]
)
def test_impossible_arguments(arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        SyntheticScenes(**arguments)  # type: ignore[arg-type]
