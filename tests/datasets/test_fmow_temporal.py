"""fMoW-temporal: places, timestamps, repeated dates, one crop for all, damage."""

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image

from tests.data.fmow_rgb.data import CLASSES, TABLES, path_of, write_raw
from tests.data.fmow_temporal.data import DATES, write_temporal
from torchgeo_explora.datasets import Cropping, FMoWTemporal
from torchgeo_explora.datasets._csv import parse_hours
from torchgeo_explora.datasets._index import timestamp_features
from torchgeo_explora.errors import ConfigError, ImageError

CROP = Cropping(16)


def _rows(table: Path) -> list[list[str]]:
    with table.open(newline='') as file:
        return list(csv.reader(file))


def _features(text: str) -> list[float]:
    """SatMAE's: parts of the text."""
    return [int(text[:4]) - 2002, int(text[5:7]) - 1, int(text[11:13])]


def test_places_are_what_differs_in_the_date_alone(tmp_path: Path) -> None:
    dataset = FMoWTemporal(write_temporal(tmp_path))
    assert len(dataset) == sum(DATES) * len(CLASSES)
    start = 0
    for _, count in itertools.product(CLASSES, DATES):
        members = set(range(start, start + count))
        for row in members:
            assert set(dataset.siblings(row)) == members - {row}
        start += count


def test_samples_are_the_picture_and_others_of_its_place(tmp_path: Path) -> None:
    dataset = FMoWTemporal(write_temporal(tmp_path), cropping=CROP)
    texts = [row[2] for row in _rows(tmp_path / TABLES['train'])[1:]]
    images = [dataset[row]['image'][0] for row in range(len(dataset))]
    for row in range(len(dataset)):
        sample = dataset.draw(row, 7)
        assert sample['image'].shape == (3, 3, 16, 16)
        assert sample['timestamps'].dtype == torch.float32
        times = sample['timestamps'].tolist()
        assert times[0] == _features(texts[row])
        chosen = [
            next(k for k in (row, *dataset.siblings(row)) if times[t] == _features(texts[k]))
            for t in range(3)
        ]
        for date, k in enumerate(chosen):
            assert torch.equal(sample['image'][date], images[k])  # centre crops: nothing is drawn
        others = len(dataset.siblings(row))
        assert len(set(chosen)) == min(3, others + 1)  # repeated only where there are too few
        if others == 1:
            assert chosen[1] == chosen[2] != row


def test_every_other_date_is_drawn_sooner_or_later(tmp_path: Path) -> None:
    dataset = FMoWTemporal(write_temporal(tmp_path), cropping=CROP)
    seen = {tuple(dataset.draw(0, epoch)['timestamps'][1].tolist()) for epoch in range(40)}
    assert len(seen) == DATES[0] - 1
    again = FMoWTemporal(tmp_path, cropping=CROP)
    for epoch in range(3):
        assert torch.equal(dataset.draw(0, epoch)['image'], again.draw(0, epoch)['image'])


def test_all_dates_are_cut_by_one_draw(tmp_path: Path) -> None:
    """Pictures of a place that are the same stay the same, whatever their size."""
    write_temporal(tmp_path)
    ramp = np.stack([np.tile(np.linspace(0, 255, 96), (72, 1))] * 3, -1)
    for date in range(DATES[0]):
        picture = Image.fromarray(ramp.astype(np.uint8))
        size = (96, 72) if date % 2 == 0 else (48, 36)
        path = tmp_path / 'fmow' / path_of('train', 'airport', 0, date)
        picture.resize(size).save(path, quality=100)
    for mode in ('square', 'resized'):
        dataset = FMoWTemporal(tmp_path, cropping=Cropping(16, mode))
        spread = []
        for epoch in range(8):
            image = dataset.draw(0, epoch)['image']
            assert (image - image[:1]).abs().max() < 0.06  # a pixel of 48 is 0.02
            spread.append(float(image.mean()))
        assert max(spread) - min(spread) > 0.1


def test_raw_layout_takes_times_from_the_notes(tmp_path: Path) -> None:
    dataset = FMoWTemporal(write_raw(tmp_path, DATES), cropping=CROP)
    path = (tmp_path / path_of('train', 'airport', 0, 2)).with_suffix('.json')
    text = json.loads(path.read_text())['timestamp']
    assert dataset[2]['timestamps'][0].tolist() == _features(text)
    path.write_text(path.read_text().replace(text, 'yesterday'))
    with pytest.warns(UserWarning, match=r"timestamp 'yesterday' is none.*1 of 24"):
        sample = FMoWTemporal(tmp_path, cropping=CROP)[2]
    assert torch.equal(sample['image'][0], dataset[3]['image'][0])


def test_damaged_dates_are_replaced_by_others(tmp_path: Path) -> None:
    write_temporal(tmp_path)
    folder = tmp_path / 'fmow'
    (folder / path_of('train', 'airport', 0, 1)).unlink()
    (folder / path_of('train', 'airport', 1, 1)).write_bytes(b'')
    dataset = FMoWTemporal(tmp_path, cropping=CROP)
    fresh = FMoWTemporal(tmp_path, cropping=CROP)
    with pytest.warns(UserWarning, match='cannot be used'):
        samples = [dataset.draw(0, epoch) for epoch in range(20)]
        pair = dataset[5]
        for epoch in (19, 3):  # what was met before changes nothing
            assert torch.equal(fresh.draw(0, epoch)['image'], samples[epoch]['image'])
        assert torch.equal(dataset[1]['image'][0], dataset[2]['image'][0])
    texts = [row[2] for row in _rows(tmp_path / TABLES['train'])[1:]]
    drawn = {tuple(time) for sample in samples for time in sample['timestamps'].tolist()}
    assert drawn == {tuple(_features(texts[k])) for k in (0, 2, 3, 4)}
    assert all(len({tuple(t) for t in s['timestamps'].tolist()}) == 3 for s in samples)
    assert torch.equal(pair['image'][0], pair['image'][2])


def test_timestamps_that_do_not_parse(tmp_path: Path) -> None:
    write_temporal(tmp_path)
    table = tmp_path / TABLES['train']
    rows = _rows(table)
    rows[3][2] = '2016-13-09T07:54:11Z'
    with table.open('w', newline='') as file:
        csv.writer(file).writerows(rows)
    with pytest.warns(UserWarning, match="1 of 24.*no timestamp like.*row 4: '2016-13-09T07"):
        assert len(FMoWTemporal(tmp_path)) == 23
    with table.open('w', newline='') as file:
        csv.writer(file).writerows(row[:2] for row in rows)
    with pytest.raises(ImageError, match="none of them is 'timestamp'"):
        FMoWTemporal(tmp_path)


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('2016-05-09T07:54:11Z', [14, 4, 7]),
        ('2016-05-09 23:54:11.123Z', [14, 4, 23]),
        (' 2002-01-31T00:00:00+00:00 ', [0, 0, 0]),
        ('2017-12-01T11', [15, 11, 11]),
        ('1999-02-28T05:00', [-3, 1, 5]),
        ('2016-02-29T05:00', [14, 1, 5]),
        ('2015-02-29T05:00', None),
        ('2016-05-09', None),
        ('2016-05-09T07:54:11+02:00', None),
        ('2016-05-09T24:54:11Z', None),
        ('', None),
    ],
)
def test_parsing(text: str, expected: list[float] | None) -> None:
    hours, valid = parse_hours(['2016-05-09T07:54:11Z', text])
    assert valid.tolist() == [True, expected is not None]
    if expected is not None:
        assert timestamp_features(torch.from_numpy(hours))[1].tolist() == expected


def test_any_number_of_dates(tmp_path: Path) -> None:
    write_temporal(tmp_path)
    for dates in (1, 2, 7):
        sample = FMoWTemporal(tmp_path, cropping=CROP, dates=dates)[0]
        assert sample['image'].shape[0] == len(sample['timestamps']) == dates
    for wrong in ({'dates': 0}, {'cropping': Cropping()}):
        with pytest.raises(ConfigError, match='dates'):
            FMoWTemporal(tmp_path, **wrong)


def test_plot(tmp_path: Path) -> None:
    dataset = FMoWTemporal(write_temporal(tmp_path), cropping=CROP)
    figure = dataset.plot(dataset[0])
    titles = [axis.get_title() for axis in figure.axes]
    assert len(titles) == 3 and titles[0] == '2010-01, 00 h'
    plt.close(figure)
