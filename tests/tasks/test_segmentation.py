"""LoRA segmentation: what trains, that it learns, resumes exactly, and that its file says the same."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchgeo.datamodules import NonGeoDataModule

from tests.tasks.dinov2_runs import make_trainer
from tests.token_vits import GROUPS
from torchgeo_explora.datamodules._base import ImageDataModule
from torchgeo_explora.errors import ConfigError, ImageError, LabelError
from torchgeo_explora.models import create_backbone, load_model, save_backbone
from torchgeo_explora.tasks import LoRASemanticSegmentation
from torchgeo_explora.tasks._masks import ValidPixels, check_masks

IGNORED = 255
SMALL: dict[str, Any] = {
    'model': 'test_vit', 'decoder': 'fpn', 'rank': 2, 'base_lr': 0.3, 'warmup_epochs': 0.5,
    'decoder_options': {'decoder_pyramid_channels': 8, 'decoder_segmentation_channels': 32},
}  # fmt: skip


CLASSES = ('ground', 'red', 'green')


class Fields(Dataset[dict[str, Tensor]]):
    """Red and green rectangles on grey, and some pixels without a truth."""

    def __init__(self, count: int, seed: int, size: int = 48) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = 0.4 + 0.1 * torch.rand(count, 3, size, size, generator=generator)
        self.masks = torch.zeros(count, size, size, dtype=torch.long)
        corners = torch.randint(0, size // 2, (count, 2, 2), generator=generator).tolist()
        for row, places in enumerate(corners):
            for band, (top, left) in enumerate(places):
                place = slice(top, top + size // 2), slice(left, left + size // 2)
                self.images[row][(band, *place)] += 0.5
                self.masks[row][place] = band + 1
        self.masks[:, :2] = IGNORED

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {'image': self.images[index], 'mask': self.masks[index]}


class FieldDataModule(ImageDataModule):
    """Fields, in an order that can be taken up anywhere."""

    ignore_index = IGNORED
    bands = ('red', 'green', 'blue')
    colors = ((0, 0, 0), (255, 0, 0), (0, 255, 0))

    def __init__(self, named: bool = True) -> None:
        super().__init__(Fields, batch_size=4)  # type: ignore[arg-type]
        self.classes = list(CLASSES) if named else None
        self.resolution = 0.5

    def setup(self, stage: str) -> None:
        self.train_dataset, self.val_dataset = Fields(12, 1), Fields(4, 2)
        self.test_dataset = self.predict_dataset = Fields(4, 3)


def make_task(**arguments: Any) -> LoRASemanticSegmentation:  # noqa: ANN401
    return LoRASemanticSegmentation(**{**SMALL, **arguments})


@pytest.fixture(scope='module')
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights to start from."""
    vit, _ = create_backbone('test_vit', seed=4)
    return save_backbone(vit, tmp_path_factory.mktemp('base') / 'base.safetensors')


@pytest.fixture(scope='module')
def fitted(
    base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LoRASemanticSegmentation, Path]:
    """A task after some epochs, and the folder of its files."""
    folder = tmp_path_factory.mktemp('fitted')
    task = make_task(weights=str(base), image_size=40)
    make_trainer(folder, max_epochs=12).fit(task, FieldDataModule())
    return task, folder


def _weights(task: LoRASemanticSegmentation) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in task.model.state_dict().items()}


def test_it_learns(fitted: tuple[LoRASemanticSegmentation, Path], tmp_path: Path) -> None:
    task, _ = fitted
    (result,) = make_trainer(tmp_path).test(task, FieldDataModule(), verbose=False)
    assert result['test_AverageJaccardIndex'] > 0.5  # one class alone: below 0.2
    # pixels without a truth do not count: the metrics are those of the others
    data = Fields(4, 3)
    with torch.no_grad():
        found = task.eval()(data.images).argmax(dim=1)
    valid = data.masks != IGNORED
    share = (found == data.masks)[valid].float().mean()
    torch.testing.assert_close(torch.tensor(result['test_OverallAccuracy']), share)
    for index, name in enumerate(CLASSES):
        both = ((found == index) & (data.masks == index))[valid].sum()
        either = ((found == index) | (data.masks == index))[valid].sum()
        iou = result[f'test_ClasswiseJaccardIndex_{name}']
        torch.testing.assert_close(torch.tensor(iou), both / either)


def test_the_file_is_the_model(fitted: tuple[LoRASemanticSegmentation, Path]) -> None:
    task, folder = fitted
    network, spec = load_model(folder / 'model.safetensors')
    images = Fields(2, 5, size=37).images
    with torch.no_grad():
        expected, found = task.eval()(images), network(images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert spec.task == 'segmentation' and spec.classes == CLASSES
    assert spec.bands == FieldDataModule.bands and spec.colors == FieldDataModule.colors
    assert (spec.image_size, spec.ignore_index, spec.resolution) == (40, IGNORED, 0.5)


def test_it_starts_from_the_backbone_of_its_own_file(
    fitted: tuple[LoRASemanticSegmentation, Path],
) -> None:
    task, folder = fitted
    again = make_task(weights=str(folder / 'model.safetensors'), num_classes=2)
    images = Fields(1, 5).images
    with torch.no_grad():
        expected = task.eval().backbone.forward_features(task.normalize(images))
        found = again.eval().backbone.forward_features(again.normalize(images))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('method', ['lora', 'full', 'frozen'])
def test_what_trains(method: Any, base: Path, tmp_path: Path) -> None:  # noqa: ANN401
    task = make_task(weights=str(base), method=method, num_classes=3)
    before = _weights(task)
    make_trainer(tmp_path, max_epochs=1).fit(task, FieldDataModule())
    after = _weights(task)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith('decoder.') for name in moved)
    assert any(name.startswith('segmentation_head.') for name in moved)
    inside = {name for name in moved if name.startswith('encoder.')}
    if method == 'lora':
        factors = {name for name in before if 'lora_' in name}
        assert inside == factors and len(factors) == 3 * len(task.backbone.blocks)
    elif method == 'frozen':
        assert inside == set()
    else:
        weights = {n for n, p in task.model.named_parameters() if n.startswith('encoder.')}
        assert inside == weights


def test_what_the_decoder_never_sees_does_not_train() -> None:
    task = make_task(num_classes=2, method='full', blocks=(0, 1, 2, 3), norm=False, drop_path=0.0)
    frozen = {n for n, p in task.backbone.named_parameters() if not p.requires_grad}
    assert frozen == set(task.adapter_report.frozen)
    assert {name.split('.')[1] for name in frozen if name.startswith('blocks.')} == {'4', '5'}
    assert 'norm.weight' in frozen and 'blocks.3.attn.qkv.weight' not in frozen
    images = torch.rand(2, 3, 32, 32)
    task(images).square().mean().backward()
    without = {n for n, p in task.model.named_parameters() if p.requires_grad and p.grad is None}
    assert without == set()


def test_a_resumed_run_equals_an_unbroken_one(base: Path, tmp_path: Path) -> None:
    def task() -> LoRASemanticSegmentation:
        # FPN has dropout, and stochastic depth is on
        return make_task(weights=str(base), image_size=32)

    whole = task()
    keeper = ModelCheckpoint(tmp_path, 'at-{step}', every_n_train_steps=4, save_top_k=-1)
    trainer = make_trainer(
        tmp_path / 'whole', max_epochs=3, callbacks=[keeper], enable_checkpointing=True
    )
    trainer.fit(whole, FieldDataModule())
    rest = task()
    make_trainer(tmp_path / 'rest', max_epochs=3).fit(
        rest, FieldDataModule(), ckpt_path=str(tmp_path / 'at-step=4.ckpt')
    )
    expected, found = _weights(whole), _weights(rest)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=0, rtol=0, msg=name)
    assert (tmp_path / 'rest' / 'model.safetensors').is_file()


def test_a_checkpoint_is_used_without_its_data(
    fitted: tuple[LoRASemanticSegmentation, Path], tmp_path: Path
) -> None:
    task, _ = fitted
    trainer = make_trainer(tmp_path, max_epochs=0)
    trainer.strategy.connect(task)
    trainer.save_checkpoint(tmp_path / 'task.ckpt')
    again = LoRASemanticSegmentation.load_from_checkpoint(tmp_path / 'task.ckpt').eval()
    images = Fields(1, 5).images
    with torch.no_grad():
        torch.testing.assert_close(again(images), task.eval()(images))
    with pytest.raises(ConfigError, match='head of 3'):
        other = make_task(num_classes=2, ignore_index=IGNORED)
        other.on_load_checkpoint(torch.load(tmp_path / 'task.ckpt', weights_only=False))


def test_prediction_gives_probabilities(
    fitted: tuple[LoRASemanticSegmentation, Path], tmp_path: Path
) -> None:
    task, _ = fitted
    found = make_trainer(tmp_path).predict(task, FieldDataModule())
    assert found is not None
    probabilities = found[0]['probabilities']  # type: ignore[call-overload]
    assert probabilities.shape == (4, 3, 48, 48)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(4, 48, 48))


def _step(task: LoRASemanticSegmentation, batch: dict[str, Any], folder: Path) -> float:
    """One training step; the loss."""

    class Once(NonGeoDataModule):
        batch_size = len(batch['image'])

        def setup(self, stage: str) -> None:
            del stage

        def train_dataloader(self) -> Any:  # noqa: ANN401
            return torch.utils.data.DataLoader([batch], batch_size=None)  # type: ignore[arg-type]

        def on_after_batch_transfer(
            self, batch: dict[str, Tensor], dataloader_idx: int
        ) -> dict[str, Tensor]:
            return batch

    data = Once(Fields, len(batch['image']), 0)  # type: ignore[arg-type]
    trainer = make_trainer(folder, max_epochs=1, limit_val_batches=0)
    trainer.fit(task, data)
    loss = float(trainer.callback_metrics['train_loss'])
    assert all(bool(torch.isfinite(p).all()) for p in task.model.parameters())
    return loss


@pytest.mark.parametrize('loss', ['ce', 'focal', 'jaccard', 'dice'])
def test_a_batch_of_nothing_but_padding_does_no_harm(loss: Any, tmp_path: Path) -> None:  # noqa: ANN401
    task = make_task(num_classes=3, ignore_index=IGNORED, loss=loss, method='frozen')
    data = Fields(2, 1)
    batch = {'image': data.images, 'mask': torch.full_like(data.masks, IGNORED)}
    assert _step(task, batch, tmp_path) == 0
    known = task.criterion(torch.randn(2, 3, 48, 48), data.masks)
    assert bool(torch.isfinite(known)) and known > 0


@pytest.mark.parametrize('decoder', ['upernet', 'pspnet', 'dpt'])
def test_a_batch_of_one_image_trains(decoder: str, tmp_path: Path) -> None:
    options = {
        'upernet': {'decoder_channels': 8},
        'pspnet': {'psp_out_channels': 8},
        'dpt': {'decoder_fusion_channels': 8, 'decoder_intermediate_channels': (8, 8, 8, 8)},
    }
    task = make_task(
        num_classes=3, ignore_index=IGNORED, decoder=decoder, decoder_options=options[decoder]
    )
    data = Fields(1, 1)
    assert _step(task, {'image': data.images, 'mask': data.masks}, tmp_path) > 0


def test_groups_of_bands_and_dates_train(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 2, (2, 24, 24), generator=generator)
    shared: dict[str, Any] = {'num_classes': 2, 'image_size': 16}
    bands = [f'B{index}' for index in range(6)]
    named = {f'g{i}': [bands[band] for band in group] for i, group in enumerate(GROUPS)}
    task = make_task(
        model='tiny_group_channel_vit', bands=bands, groups=named, mean=[0.5] * 6, std=[0.2] * 6,
        **shared,
    )  # fmt: skip
    images = torch.rand(2, 6, 24, 24, generator=generator)
    assert _step(task, {'image': images, 'mask': masks}, tmp_path / 'groups') > 0
    task = make_task(model='tiny_temporal_vit', mean=[0.5] * 2, std=[0.2] * 2, **shared)
    images = torch.rand(2, 3, 2, 24, 24, generator=generator)
    times = torch.randint(0, 20, (2, 3, 3), generator=generator).float()
    batch = {'image': images, 'mask': masks, 'timestamps': times}
    assert _step(task, batch, tmp_path / 'dates') > 0


def test_recomputed_activations_change_nothing(base: Path, tmp_path: Path) -> None:
    states = []
    for recompute in (False, True):
        task = make_task(weights=str(base), grad_checkpointing=recompute)
        make_trainer(tmp_path, max_epochs=1).fit(task, FieldDataModule())
        states.append(_weights(task))
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, atol=1e-5, rtol=1e-4, msg=name)


def _reference(kind: str) -> nn.Module:
    losses: dict[str, nn.Module] = {
        'ce': nn.CrossEntropyLoss(),
        'focal': smp.losses.FocalLoss('multiclass', normalized=True),
        'jaccard': smp.losses.JaccardLoss('multiclass'),
        'dice': smp.losses.DiceLoss('multiclass'),
    }
    return losses[kind]


@pytest.mark.parametrize('ignored', [IGNORED, 0])
@pytest.mark.parametrize('kind', ['ce', 'focal', 'jaccard', 'dice'])
def test_losses_are_torchgeos_over_the_pixels_that_count(kind: Any, ignored: int) -> None:  # noqa: ANN401
    """Image rows are cut away, or ignored: the same."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 6, 5, generator=generator)
    masks = torch.randint(1, 3, (2, 6, 5), generator=generator)
    masks[:, 4:] = ignored
    task = make_task(num_classes=3, loss=kind, ignore_index=ignored)
    found = task.criterion(logits, masks)
    expected = _reference(kind)(logits[:, :, :4], masks[:, :4])
    if ignored == 0 and kind in ('jaccard', 'dice'):
        # a class without a pixel counts as solved, and TorchGeo leaves the ignored one out
        others = 2 / 3 if kind == 'jaccard' else 1.0
        torch.testing.assert_close(found * others, expected, atol=1e-5, rtol=1e-5)
    else:
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_class_of_no_weight_cannot_spoil_a_batch() -> None:
    weights = [0.0, 1.0, 2.0]
    criterion = ValidPixels(nn.CrossEntropyLoss(weight=torch.tensor(weights)), None, weights)
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = criterion(logits, torch.zeros(1, 2, 2, dtype=torch.long))
    loss.backward()
    assert loss == 0 and logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize(
    ('masks', 'ignored', 'error', 'match'),
    [
        (torch.full((1, 4, 4), 3), None, LabelError, 'hold 3, and 0 to 2 are known'),
        (torch.full((1, 4, 4), 255), 254, LabelError, '0 to 2 and 254'),
        (torch.full((1, 4, 4), -1), None, LabelError, 'hold -1'),
        (torch.full((1, 4, 4), 0.5), None, LabelError, 'hold 0.5'),
        (torch.zeros(1, 4, 5), None, ImageError, 'one mask an image'),
        (torch.zeros(2, 4, 4), None, ImageError, 'one mask an image'),
    ],
)
def test_masks_that_do_not_fit_are_refused(
    masks: Tensor, ignored: int | None, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        check_masks(torch.zeros(1, 3, 4, 4), masks, 3, ignored)


def test_unknown_values_end_a_fit_with_the_reason(tmp_path: Path) -> None:
    task = make_task(num_classes=2, labels=['ground', 'red'], ignore_index=IGNORED)
    data = Fields(2, 1)
    with pytest.raises(LabelError, match='hold 2, and 0 to 1 and 255'):
        _step(task, {'image': data.images, 'mask': data.masks}, tmp_path)
    with pytest.raises(ImageError, match='needs image and mask'):
        _step(make_task(num_classes=2), {'image': data.images}, tmp_path)


def test_unknown_classes_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='num_classes or labels'):
        make_trainer(tmp_path, max_epochs=1).fit(make_task(), FieldDataModule(named=False))


@pytest.mark.parametrize(
    ('arguments', 'match'),
    [
        ({'class_weights': [1.0]}, 'class_weights has 1'),
        ({'decoder': 'pan'}, 'cannot be put on'),
        ({'image_size': 0}, 'crop_size'),
        ({'decoder_options': {'decoder_chanels': 8}}, 'decoder_chanels'),
        ({'rank': 0}, 'rank is 0'),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make_task(**{'num_classes': 2, **arguments})


def test_a_class_for_padding_is_none_to_learn(tmp_path: Path) -> None:
    """As TorchGeo's SpaceNet data has it: 0 for padding, 1 for background, 2 for buildings."""
    data = Fields(4, 1)
    masks = torch.where(data.masks == IGNORED, 0, data.masks.clamp_max(1) + 1)
    task = make_task(labels=['padding', 'background', 'building'], ignore_index=0)
    with warnings.catch_warnings():
        warnings.filterwarnings('error', 'No training image')
        _step(task, {'image': data.images, 'mask': masks}, tmp_path)
    with pytest.warns(UserWarning, match='No training image has the class building'):
        again = make_task(labels=['padding', 'background', 'building'], ignore_index=0)
        _step(again, {'image': data.images, 'mask': masks.clamp_max(1)}, tmp_path)
