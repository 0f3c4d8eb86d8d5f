"""Camelyon17 and iWildCam: equal to what the wilds package reads, and what is wrong with tables."""

import json
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torchgeo.datasets import DatasetNotFoundError

from tests.data.camelyon17.data import rows, write_camelyon17, write_release, write_table
from tests.data.iwildcam.data import write_iwildcam, write_labelled
from tests.datasets import index_sizes
from tests.processes import run
from torchgeo_explora.datasets import Camelyon17, Cropping, IWildCam, _wilds, camelyon17
from torchgeo_explora.datasets._wilds import Release, Wilds
from torchgeo_explora.errors import ConfigError, ImageError

pytestmark = pytest.mark.filterwarnings('ignore:.*were published')


@pytest.fixture(scope='module')
def camelyon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_camelyon17(tmp_path_factory.mktemp('camelyon17'))


@pytest.fixture(scope='module')
def cam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_iwildcam(tmp_path_factory.mktemp('iwildcam'))


def _same(mine: Wilds, theirs: object, split: str) -> None:
    """All images, labels and metadata of a split are those of the wilds package."""
    subset = theirs.get_subset(split)  # type: ignore[attr-defined]
    width = len(mine.metadata_fields)  # the package appends whether it is from the source domain
    assert len(mine) == len(subset) > 0
    for number, (image, label, metadata) in enumerate(subset):
        sample = mine[number]
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        assert torch.equal((255 * sample['image']).round().to(torch.uint8), pixels)
        assert sample['metadata'].tolist() == metadata.tolist()[:width]
        assert int(sample['label']) == int(label)
    fields = theirs.metadata_fields[:width]  # type: ignore[attr-defined]
    assert list(mine.metadata_fields) == fields


@pytest.mark.parametrize('scheme', ['official', 'mixed-to-test'])
@pytest.mark.parametrize('split', ['train', 'id_val', 'val', 'test'])
def test_camelyon17_is_that_of_wilds(camelyon: Path, split: str, scheme: str) -> None:
    wilds = pytest.importorskip('wilds')
    theirs = wilds.get_dataset(dataset='camelyon17', root_dir=str(camelyon), split_scheme=scheme)
    _same(Camelyon17(camelyon, split, scheme), theirs, split)  # type: ignore[arg-type]


@pytest.mark.parametrize('split', ['train', 'val', 'test', 'id_val', 'id_test'])
def test_iwildcam_is_that_of_wilds(cam: Path, split: str) -> None:
    wilds = pytest.importorskip('wilds')
    theirs = wilds.get_dataset(dataset='iwildcam', root_dir=str(cam))
    _same(IWildCam(cam, split), theirs, split)  # type: ignore[arg-type]


def test_unlabelled_pictures_have_the_metadata_of_wilds(cam: Path) -> None:
    wilds = pytest.importorskip('wilds')
    theirs = wilds.get_dataset(dataset='iwildcam', root_dir=str(cam), unlabeled=True)
    mine = IWildCam(cam, 'extra_unlabeled')
    assert len(mine) == 6
    found = torch.stack([mine[number]['metadata'] for number in range(6)])
    assert torch.equal(found, theirs.metadata_array[:, : found.shape[1]])
    assert 'label' not in mine[0] and found[1, 2:8].tolist() == [-1] * 6


@pytest.mark.parametrize(
    ('split', 'hospitals'),
    [('train_unlabeled', {0, 3, 4}), ('val_unlabeled', {1}), ('test_unlabeled', {2})],
)
def test_unlabelled_patches_are_split_by_hospital(
    camelyon: Path, split: str, hospitals: set[int]
) -> None:
    dataset = Camelyon17(camelyon, split)  # type: ignore[arg-type]
    samples = [dataset[number] for number in range(len(dataset))]
    assert {int(sample['metadata'][0]) for sample in samples} == hospitals
    assert len(samples) == 8 * len(hospitals) and 'label' not in samples[0]
    assert {int(sample['metadata'][2]) for sample in samples} == {-100}


def test_names_of_the_classes(cam: Path, tmp_path: Path) -> None:
    assert IWildCam(cam, 'val').classes == ['empty', 'tayassu pecari', 'dasyprocta punctata']
    folder = write_labelled(tmp_path / 'iwildcam_v2.0')
    (folder / 'categories.csv').unlink()
    assert IWildCam(folder, 'val').classes == ['0', '1', '2']


def test_crops_depend_on_seed_and_pass_alone(cam: Path) -> None:
    cropping = Cropping(16, 'resized', (0.2, 0.5))
    one, two = (IWildCam(cam, 'train', cropping, seed=3) for _ in range(2))
    assert torch.equal(one.draw(4, 2)['image'], two.draw(4, 2)['image'])
    assert not torch.equal(one.draw(4, 2)['image'], one.draw(4, 3)['image'])
    assert one[0]['image'].shape == (3, 16, 16)
    assert one.plot(one[0]).get_suptitle() == 'Label: empty'


def test_a_damaged_picture_is_replaced_and_named(tmp_path: Path) -> None:
    folder = write_labelled(tmp_path / 'iwildcam_v2.0')
    dataset = IWildCam(tmp_path, 'val')
    path = folder / 'train' / dataset.index.paths[1]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.warns(UserWarning, match='cannot be used and the next image takes its place'):
        sample = dataset[1]
    assert torch.equal(sample['metadata'], dataset[2]['metadata'])
    assert dataset.damaged == [dataset.index.paths[1]]
    path.unlink()
    with pytest.warns(UserWarning, match='1 of 4 entries are left out: each is missing'):
        assert len(IWildCam(tmp_path, 'val', check_files=True)) == 3


def test_a_part_of_the_data_set_is_said_to_be_one(camelyon: Path) -> None:
    with pytest.warns(UserWarning, match='train has 18 images, but 302,436 were published'):
        Camelyon17(camelyon, 'train')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        Camelyon17(camelyon, 'train', 'mixed-to-test')


class TestBadInput:
    def test_nothing_there(self, tmp_path: Path) -> None:
        for dataset in (Camelyon17, IWildCam):
            with pytest.raises(DatasetNotFoundError, match='download=False'):
                dataset(tmp_path)

    def test_table_without_patches(self, tmp_path: Path) -> None:
        folder = tmp_path / 'camelyon17_v1.0'
        folder.mkdir()
        write_table(folder / 'metadata.csv', rows(True))
        with pytest.raises(DatasetNotFoundError):
            Camelyon17(tmp_path)

    def test_another_version(self, tmp_path: Path) -> None:
        folder = write_labelled(tmp_path / 'iwildcam_v2.0')
        (folder / 'RELEASE_v2.0.txt').rename(folder / 'RELEASE_v1.0.txt')
        with pytest.raises(ImageError, match=r'another version \(RELEASE_v1.0.txt\)'):
            IWildCam(tmp_path)

    @pytest.mark.parametrize('value', ['many', '', '1.5'])
    def test_rows_without_numbers_are_named(self, tmp_path: Path, value: str) -> None:
        folder = write_release(tmp_path / 'camelyon17_v1.0', True)
        table = [list(row) for row in rows(True)]
        table[5][2] = value
        write_table(folder / 'metadata.csv', table)
        with pytest.raises(ImageError, match=f"in 1 places .row 7: x_coord '{value}'"):
            Camelyon17(tmp_path)

    def test_rows_without_a_time_are_named(self, tmp_path: Path) -> None:
        path = write_labelled(tmp_path / 'iwildcam_v2.0') / 'metadata.csv'
        path.write_text(path.read_text().replace('2013-01-10 00:52:00.000', 'yesterday'))
        with pytest.raises(ImageError, match=r'in 1 rows \(row 2\)'):
            IWildCam(tmp_path)

    def test_missing_column(self, tmp_path: Path) -> None:
        path = write_labelled(tmp_path / 'iwildcam_v2.0') / 'metadata.csv'
        path.write_text(path.read_text().replace('sequence_remapped', 'seq'))
        with pytest.raises(ImageError, match='but no sequence_remapped'):
            IWildCam(tmp_path)

    def test_no_table(self, tmp_path: Path) -> None:
        path = write_labelled(tmp_path / 'iwildcam_v2.0') / 'metadata.csv'
        path.write_bytes(b'')
        with pytest.raises(ImageError, match='cannot be read'):
            IWildCam(tmp_path)

    def test_unknown_splits(self, camelyon: Path) -> None:
        with pytest.raises(ConfigError, match=r"'valid': give one of train, id_val, val, test, tr"):
            Camelyon17(camelyon, 'valid')  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="'official' or 'mixed-to-test'"):
            Camelyon17(camelyon, 'train', 'mixed')  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match='seed is -1'):
            Camelyon17(camelyon, seed=-1)


class TestDownload:
    @pytest.fixture
    def served(self, camelyon: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The archive at a place of our own, of its size."""
        path = tmp_path / 'server' / 'bundle'
        path.parent.mkdir()
        with tarfile.open(path, 'w:gz') as archive:
            for item in sorted((camelyon / 'camelyon17_v1.0').iterdir()):
                archive.add(item, item.name)
        monkeypatch.setattr(_wilds, 'WILDS_URL', path.parent.as_uri() + '/{}')
        release = Release('camelyon17', '1.0', 'bundle', path.stat().st_size, {'train': 18})
        monkeypatch.setattr(camelyon17, 'LABELLED', release)
        monkeypatch.setattr(Camelyon17, 'releases', (release,))
        return path

    def test_downloads_and_unpacks(self, served: Path, tmp_path: Path) -> None:
        root = tmp_path / 'new'
        assert len(Camelyon17(root, download=True)) == 18
        assert sorted(path.name for path in root.iterdir()) == [
            'camelyon17_v1.0', 'camelyon17_v1.0.tar.gz',
        ]  # fmt: skip
        assert len(Camelyon17(root)) == 18

    def test_wrong_size(self, served: Path, tmp_path: Path) -> None:
        served.write_bytes(served.read_bytes() + b'more')
        with pytest.raises(ImageError, match='were published: remove it'):
            Camelyon17(tmp_path / 'new', download=True)
        assert not (tmp_path / 'new' / 'camelyon17_v1.0').exists()


@pytest.mark.slow
def test_an_index_of_three_million_patches(tmp_path: Path) -> None:
    """The published number of rows: read in seconds, far below 1 GB, and shared by workers."""
    folder = tmp_path / 'camelyon17_unlabeled_v1.0'
    folder.mkdir()
    centres = np.repeat([0, 3, 4, 1, 2], [599_749] * 3 + [600_030] * 2)
    number = np.arange(len(centres))
    with (folder / 'metadata.csv').open('w') as file:
        file.write(',patient,node,x_coord,y_coord,tumor,slide,center\n')
        file.writelines(
            f'{i},{i % 100:03d},{i % 5},{i % 90_000},{i % 70_000},-1,{c * 10},{c}\n'
            for i, c in zip(number.tolist(), centres.tolist(), strict=True)
        )
    first = folder / 'patches' / 'patient_000_node_0' / 'patch_patient_000_node_0_x_0_y_0.png'
    first.parent.mkdir(parents=True)
    first.touch()
    found = json.loads(run(index_sizes, 'camelyon17', tmp_path, output=tmp_path / 'printed'))
    print(found)  # noqa: T201
    assert found['rows'] == 1_799_247
    assert found['seconds'] < 30 and found['grown'] < 600e6
    assert found['worker'] < 50e6  # the tensors alone hold more than 150 MB
