"""Probes of sequences of dates, and what a probe cannot predict."""

from pathlib import Path

import pytest
import torch

from tests.tasks.toy import TINY, ColourDataModule, trainer
from tests.token_vits import make_temporal
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.layers.tokens import encode, global_token
from torchgeo_explora.objectives.probing import batches_hash, extract_features, image_features
from torchgeo_explora.tasks import KNN, LinearProbe
from torchgeo_explora.tasks._frozen import RandomViews
from torchgeo_explora.transforms import EvalTransform


def _batch(
    bands: int = 3, count: int = 3, dates: int = 2, size: int = 40
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        'image': torch.rand(count, dates, bands, size, size, generator=generator),
        'timestamps': torch.randint(0, 12, (count, dates, 3), generator=generator).float(),
        'label': torch.arange(count),
    }


@torch.no_grad()
def test_features_are_those_of_the_encoder_at_these_times() -> None:
    model, batch = make_temporal().eval(), _batch(bands=2)
    transform = EvalTransform(32, (0.5, 0.5), (0.25, 0.25))
    found = extract_features(model, [batch], transform, n_last_blocks=1)
    images = torch.stack([transform(batch['image'][:, date]) for date in range(2)], dim=1)
    expected = global_token(model, encode(model, images, timestamps=batch['timestamps']))
    torch.testing.assert_close(found.last, expected)
    other = image_features(model, images, 1, batch['timestamps'] + 1)
    assert not torch.allclose(other.last, expected)


def test_all_dates_are_cropped_alike() -> None:
    batch = _batch()
    same = batch['image'][:, :1].expand(-1, 2, -1, -1, -1)
    crops = RandomViews(EvalTransform(16), seed=1)(same)
    assert crops.shape == (3, 2, 3, 16, 16) and torch.equal(crops[:, 0], crops[:, 1])
    single = RandomViews(EvalTransform(16), seed=1)(same[:, 0])
    torch.testing.assert_close(crops[:, 0], single)


def test_kept_features_belong_to_their_times() -> None:
    batch = _batch()
    later = {**batch, 'timestamps': batch['timestamps'] + 1}
    assert batches_hash([batch]) != batches_hash([later])
    parts = [{key: value[k : k + 1] for key, value in batch.items()} for k in range(3)]
    assert batches_hash([batch]) == batches_hash(parts)


def test_nothing_to_predict_with(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='no classifiers to predict with: fit the probe'):
        trainer(tmp_path).predict(LinearProbe(**TINY), datamodule=_Predicted())
    with pytest.raises(ConfigError, match='KNN scores labelled images and predicts none'):
        trainer(tmp_path).predict(KNN(**TINY), datamodule=_Predicted())


class _Predicted(ColourDataModule):
    """The test images, to predict."""

    def setup(self, stage: str) -> None:
        super().setup('test')
        self.predict_dataset = self.test_dataset
