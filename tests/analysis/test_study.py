"""What is measured of a model does not depend on batches, parts or interruptions."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from tests.analysis.conftest import Drawn
from torchgeo_explora.analysis import (
    AnalysisConfig,
    BlockMeasures,
    TokenProbeConfig,
    block_patches,
    measure_model,
)
from torchgeo_explora.analysis import _parts as parts
from torchgeo_explora.errors import ConfigError, ImageError
from torchgeo_explora.models import create_backbone
from torchgeo_explora.objectives.diagnostics import effective_rank
from torchgeo_explora.objectives.probing import Progress

CONFIG = AnalysisConfig(
    leading=4, tokens=120, batch_size=4, probe=TokenProbeConfig(steps=40, batch_size=32)
)


def same(a: BlockMeasures, b: BlockMeasures) -> bool:
    return a.to_dict() == b.to_dict() and np.array_equal(a.sample, b.sample)


@pytest.fixture(scope='module')
def measured(vit: VisionTransformer) -> BlockMeasures:
    return measure_model(vit, Drawn(30), config=CONFIG)


def test_measures_equal_a_loop_over_the_images(
    vit: VisionTransformer, measured: BlockMeasures
) -> None:
    dataset = Drawn(30)
    images = torch.stack([dataset[i]['image'] for i in range(30)])
    with torch.no_grad():
        blocks = list(block_patches(vit, images))
    for number, x in enumerate(blocks):
        values = np.stack([np.linalg.eigvalsh(np.cov(i.double().numpy().T))[::-1][:4] for i in x])
        ranks = np.array([effective_rank(i) for i in x])
        assert measured.eigenvalue_mean[number] == pytest.approx(values.mean(), rel=1e-5)
        assert measured.eigenvalue_std[number] == pytest.approx(values.std(), rel=1e-5)
        np.testing.assert_allclose(measured.spectrum[number], values.mean(axis=0), rtol=1e-5)
        assert measured.patch_rank[number] == pytest.approx(ranks.mean(), rel=1e-4)
        assert measured.patch_rank_std[number] == pytest.approx(ranks.std(), rel=1e-3)
        mean = effective_rank(x.mean(dim=1))
        assert measured.image_rank[number] == pytest.approx(mean, rel=1e-4)
        np.testing.assert_allclose(measured.sample[number], x.mean(dim=1), atol=1e-5)


def test_probes_score_every_patch_of_the_images_held_out(measured: BlockMeasures) -> None:
    assert measured.held_out == 6
    assert measured.classes is not None
    for score in (*measured.position, *measured.classes):
        assert (score.trained, score.scored) == (24 * 4, 6 * 4)


def test_position_is_found_and_brightness_too(vit: VisionTransformer) -> None:
    config = replace(CONFIG, tokens=40 * 16, probe=TokenProbeConfig(learning_rate=0.03))
    found = measure_model(vit, Drawn(40, noise=0.02), config=config)
    assert found.class_accuracy is not None
    assert found.position_accuracy.max() > 0.9
    assert found.class_accuracy.max() > 0.9
    noise = measure_model(vit, Drawn(40, noise=50), config=replace(config, blocks=(0,)))
    assert noise.class_accuracy is not None
    assert noise.class_accuracy.max() < 0.6


@pytest.mark.parametrize('part_bytes', [1, 2**26])
def test_parts_change_no_number(
    part_bytes: int, vit: VisionTransformer, measured: BlockMeasures, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(parts, 'PART_BYTES', part_bytes)
    found = measure_model(vit, Drawn(30), config=CONFIG, folder=tmp_path)
    assert same(found, measured)
    assert len(list(tmp_path.glob('part-*'))) == (8 if part_bytes == 1 else 1)


class Stopped(Exception):
    pass


def stop_after(count: int, phase: str) -> Callable[[str, Progress], None]:
    def progress(name: str, state: Progress) -> None:
        if name == phase and state.done >= count:
            raise Stopped

    return progress


@pytest.mark.parametrize(('phase', 'count'), [('images', 9), ('blocks', 2)])
def test_an_interrupted_analysis_goes_on_and_ends_alike(
    phase: str, count: int, vit: VisionTransformer, measured: BlockMeasures, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(parts, 'PART_BYTES', 1)
    with pytest.raises(Stopped):
        measure_model(
            vit, Drawn(30), config=CONFIG, folder=tmp_path, progress=stop_after(count, phase)
        )
    dataset = Drawn(30)
    seen: list[tuple[str, Progress]] = []
    found = measure_model(
        vit, dataset, config=CONFIG, folder=tmp_path, progress=lambda *state: seen.append(state)
    )
    assert same(found, measured)
    assert len(dataset.read) == (30 - 8 if phase == 'images' else 0)
    images = [state for name, state in seen if name == 'images']
    assert not images or (images[-1].done, images[-1].total) == (22, 22)


@pytest.mark.parametrize('change', ['weights', 'key', 'tokens', 'images'])
def test_parts_of_something_else_are_refused(
    change: str, vit: VisionTransformer, tmp_path: Path
) -> None:
    config = replace(CONFIG, blocks=(0,))
    measure_model(vit, Drawn(12), config=config, folder=tmp_path, key='a')
    other = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=0
    )
    model = other if change == 'weights' else vit
    config = replace(config, tokens=24) if change == 'tokens' else config
    with pytest.raises(ConfigError, match='parts of another analysis'):
        measure_model(
            model, Drawn(16 if change == 'images' else 12), config=config, folder=tmp_path,
            key='b' if change == 'key' else 'a',
        )  # fmt: skip


def test_other_probes_are_trained_again_on_the_same_parts(
    vit: VisionTransformer, tmp_path: Path
) -> None:
    config = replace(CONFIG, blocks=(-1,))
    first = measure_model(vit, Drawn(12), config=config, folder=tmp_path)
    dataset = Drawn(12)
    changed = replace(config, probe=TokenProbeConfig(steps=1))
    second = measure_model(vit, dataset, config=changed, folder=tmp_path, held_out=[0, 1])
    assert dataset.read == []
    assert second.position != first.position
    assert second.position[0].scored == 2 * 10


def test_chosen_blocks_have_the_numbers_of_all(
    vit: VisionTransformer, measured: BlockMeasures
) -> None:
    found = measure_model(vit, Drawn(30), config=replace(CONFIG, blocks=(-1, 0)))
    assert found.blocks == (0, 2)
    assert found.eigenvalue_mean.tolist() == measured.eigenvalue_mean[[0, 2]].tolist()
    assert found.position == (measured.position[0], measured.position[2])


def test_images_without_labels_have_no_class_accuracy(vit: VisionTransformer) -> None:
    found = measure_model(vit, Drawn(8, labels=False), config=replace(CONFIG, blocks=(0,)))
    assert found.classes is None
    assert found.class_accuracy is None
    assert np.isnan(found.rows()[0]['class_accuracy'])
    assert found.to_dict()['classes'] is None


def test_groups_of_bands_lie_at_the_same_place() -> None:
    model, _ = create_backbone(
        'explora_group_channel_vit_small_patch8_96', img_size=32, in_chans=3,
        channel_groups=[[0, 1], [2]], seed=0, depth=1, embed_dim=48, num_heads=2, channel_embed_dim=16,
    )  # fmt: skip
    config = replace(CONFIG, tokens=40 * 32, probe=TokenProbeConfig(learning_rate=0.03))
    found = measure_model(model, Drawn(40, noise=0.02), config=config)
    assert found.position[0].scored == 8 * 32
    assert found.position[0].chance == 1 / 16
    assert found.position[0].accuracy > 0.5


def test_what_cannot_be_analysed_is_refused(vit: VisionTransformer) -> None:
    with pytest.raises(ImageError, match='There are 1 images'):
        measure_model(vit, Drawn(1), config=CONFIG)
    with pytest.raises(ConfigError, match='the model has 3: choose from 0 to 2'):
        measure_model(vit, Drawn(4), config=replace(CONFIG, blocks=(3,)))
    with pytest.raises(ConfigError, match='held_out 0'):
        AnalysisConfig(held_out=0)
    temporal, _ = create_backbone('explora_temporal_vit_small_patch16_224', seed=0)
    with pytest.raises(ConfigError, match='several dates'):
        measure_model(temporal, Drawn(4), config=CONFIG)
