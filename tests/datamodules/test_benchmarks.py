"""Data modules of WILDS, NAIP land cover and RESISC45: splits, batches, what they tell."""

import shutil
from collections.abc import Sized
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchgeo.datasets import RESISC45

from tests.data.camelyon17.data import write_camelyon17
from tests.data.iwildcam.data import write_iwildcam
from tests.data.naip_landcover.data import write_sustainbench
from tests.data.resisc45.data import CLASSES, write_resisc45
from torchgeo_explora.datamodules import (
    Camelyon17DataModule,
    IWildCamDataModule,
    NAIPLandCoverDataModule,
    RESISC45DataModule,
)
from torchgeo_explora.datamodules._cropped import CroppedDataModule
from torchgeo_explora.errors import ConfigError, ImageError

pytestmark = pytest.mark.filterwarnings('ignore:.*were published', 'ignore:.*the published data')


@pytest.fixture(scope='module')
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[type[CroppedDataModule], Path]:
    folder = tmp_path_factory.mktemp('benchmarks')
    return {
        Camelyon17DataModule: write_camelyon17(folder / 'camelyon17'),
        IWildCamDataModule: write_iwildcam(folder / 'iwildcam'),
        NAIPLandCoverDataModule: write_sustainbench(folder / 'naip'),
        RESISC45DataModule: write_resisc45(folder / 'resisc45', size=64),
    }


MODULES = [
    Camelyon17DataModule, IWildCamDataModule, NAIPLandCoverDataModule, RESISC45DataModule,
]  # fmt: skip


def _batch(loader: object) -> dict[str, Tensor]:
    assert isinstance(loader, DataLoader)
    batch: dict[str, Tensor] = next(iter(loader))
    return batch


@pytest.mark.parametrize('module_class', MODULES)
@pytest.mark.parametrize('stage', ['fit', 'validate', 'test', 'predict'])
def test_every_stage_has_its_batches(
    roots: dict[type[CroppedDataModule], Path], module_class: type[CroppedDataModule], stage: str
) -> None:
    module = module_class(roots[module_class], image_size=24, batch_size=3)  # type: ignore[call-arg,arg-type]
    module.prepare_data()
    module.setup(stage)
    loaders = {
        'fit': module.train_dataloader, 'validate': module.val_dataloader,
        'test': module.test_dataloader, 'predict': module.predict_dataloader,
    }  # fmt: skip
    batch = _batch(loaders[stage]())
    assert batch['image'].shape == (3, 3, 24, 24) and batch['image'].dtype == torch.float32
    assert 0 <= float(batch['image'].min()) < float(batch['image'].max()) <= 1
    assert module.classes is not None and int(batch['label'].max()) < len(module.classes)
    assert module.scale == ((0.0, 255.0),) * 3
    assert vars(module)['bands'] == ['red', 'green', 'blue']
    assert ('metadata' in batch) == (module_class in MODULES[:2])


@pytest.mark.parametrize('module_class', MODULES)
def test_random_crops_change_from_pass_to_pass(
    roots: dict[type[CroppedDataModule], Path], module_class: type[CroppedDataModule]
) -> None:
    module = module_class(  # type: ignore[call-arg]
        roots[module_class], image_size=24, batch_size=3, steps_per_epoch=1,  # type: ignore[arg-type]
        train_scale=(0.2, 0.5),
    )  # fmt: skip
    module.setup('fit')
    dataset = module.train_dataset
    assert dataset is not None
    passes = [dataset.draw(0, number)['image'] for number in (0, 1, 0)]  # type: ignore[attr-defined]
    assert torch.equal(passes[0], passes[2]) and not torch.equal(passes[0], passes[1])


def test_what_the_benchmarks_report() -> None:
    metrics = [module_class().official_metrics for module_class in MODULES]
    assert metrics == [('accuracy',), ('accuracy', 'macro_recall', 'macro_f1'), (), ()]


class TestWilds:
    def test_pretraining_without_labels(self, roots: dict[type[CroppedDataModule], Path]) -> None:
        module = Camelyon17DataModule(
            roots[Camelyon17DataModule], 'train_unlabeled', batch_size=3, image_size=24
        )
        module.setup('fit')
        assert 'label' not in _batch(module.train_dataloader())
        assert 'label' in _batch(module.val_dataloader())
        assert module.classes == ['normal', 'tumor']

    def test_labels_need_not_be_there(
        self, roots: dict[type[CroppedDataModule], Path], tmp_path: Path
    ) -> None:
        name = 'camelyon17_unlabeled_v1.0'
        shutil.copytree(roots[Camelyon17DataModule] / name, tmp_path / name)
        module = Camelyon17DataModule(tmp_path, 'train_unlabeled', batch_size=3)
        module.setup('fit')
        assert module.val_dataloader() == [] and len(module.train_dataloader()) == 8
        with pytest.raises(ImageError, match='holds no test images of Camelyon17'):
            module.setup('test')

    def test_splits_are_kept_apart(self, roots: dict[type[CroppedDataModule], Path]) -> None:
        module = IWildCamDataModule(roots[IWildCamDataModule], val_split='id_val')
        module.setup('fit')
        module.setup('test')
        sets = [vars(module)[f'{role}_dataset'] for role in ('train', 'val', 'test')]
        assert [len(part) for part in sets] == [9, 3, 5]

    @pytest.mark.parametrize(
        ('arguments', 'reason'),
        [
            ({'train_split': 'id_val', 'val_split': 'id_val'}, 'trained on and scored on'),
            ({'val_split': 'val_unlabeled'}, "no split 'val_unlabeled' to use there: give one of"),
            ({'train_split': 'extra'}, "no split 'extra'"),
        ],
    )
    def test_impossible_splits(self, arguments: dict[str, str], reason: str) -> None:
        with pytest.raises(ConfigError, match=reason):
            Camelyon17DataModule(**arguments)  # type: ignore[arg-type]


def test_chips_of_both_scored_splits(roots: dict[type[CroppedDataModule], Path]) -> None:
    module = NAIPLandCoverDataModule(roots[NAIPLandCoverDataModule], 'joint', image_size=50)
    module.setup('validate')
    assert isinstance(module.val_dataset, Sized) and len(module.val_dataset) == 12
    assert module.resolution == pytest.approx(1.2)  # 60 m on 50 pixels
    cut = NAIPLandCoverDataModule(roots[NAIPLandCoverDataModule], image_size=50, eval_resize=60)
    assert cut.resolution == pytest.approx(1.0)
    with pytest.raises(ConfigError, match="evaluation is 'all'"):
        NAIPLandCoverDataModule(evaluation='all')


def test_resisc45_is_that_of_torchgeo(roots: dict[type[CroppedDataModule], Path]) -> None:
    root = roots[RESISC45DataModule]
    module = RESISC45DataModule(root, image_size=64, batch_size=9)
    module.setup('test')
    theirs = RESISC45(root, 'test')
    batch = _batch(module.test_dataloader())
    assert len(theirs) == len(batch['image'])
    for number, (image, label) in enumerate(zip(batch['image'], batch['label'], strict=True)):
        sample = theirs[number]
        assert torch.equal(image, sample['image'] / 255) and int(label) == int(sample['label'])
    assert module.classes == list(CLASSES)
    assert module.test_dataset is not None
    assert Path(module.test_dataset.file_of(0)).name == 'airplane_007.jpg'  # type: ignore[attr-defined]


@pytest.mark.parametrize('module_class', MODULES)
def test_nothing_there(tmp_path: Path, module_class: type[CroppedDataModule]) -> None:
    with pytest.raises(ImageError, match=r'holds no train images of .*docs/datasets\.md'):
        module_class(tmp_path).setup('fit')  # type: ignore[call-arg,arg-type]
