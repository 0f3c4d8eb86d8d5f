"""``predict`` killed at many moments, writing of the maps included: nothing is left half done."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.inference.conftest import segmentation_spec, write_raster
from torchgeo_explora.models import create_backbone, save_model
from torchgeo_explora.models.segmentation import build_segmenter

KILLS = 24

# One process imports everything and never computes; its children run the command and are killed.
PROGRAM = """
import json, os, random, signal, sys, time
from pathlib import Path
from torchgeo_explora.cli import main
import torchgeo_explora.cli.predict

arguments, whole, out, kills = json.loads(sys.argv[1])
whole, out = Path(whole), Path(out)


def start(folder, *more):
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(main([*arguments, '--out', str(folder), *more]))
    return child


def files(folder):
    return {p.name: p.read_bytes() for p in folder.glob('*_*') if p.name[0] != '.'}


begun = time.monotonic()
assert os.waitpid(start(whole), 0)[1] == 0
length = time.monotonic() - begun
expected = files(whole)
state, seen, chance, number = 'new', set(), random.Random(0), 0
while number < kills:
    child = start(out, *([] if state == 'new' else ['--resume']))
    # a run that goes on has less to do: moments within the first second of it, mostly
    time.sleep(chance.uniform(0, length) * chance.random())
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    number += status == signal.SIGKILL
    for name, content in files(out).items():
        assert content == expected[name], f'{name} is not complete after {number} kills'
        seen.add(name)
    state = 'begun' if (out / 'run.json').is_file() else 'new'
    if status == 0:  # it was done before the blow: from the beginning
        assert files(out) == expected
        os.system(f'rm -r {str(out)!r}')
        state = 'new'
assert os.waitpid(start(out, *([] if state == 'new' else ['--resume'])), 0)[1] == 0
assert files(out) == expected, 'the run that goes on ends with other bytes'
assert not list(out.glob('.torchgeo*'))
print(json.dumps({'kills': number, 'files': len(expected)}))
"""


@pytest.mark.slow
def test_no_moment_leaves_an_incomplete_file_and_the_end_has_the_same_bytes(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    backbone = create_backbone('test_vit', seed=0, img_size=32)[0]
    spec = segmentation_spec(classes=4, image_size=32, options={'decoder': 'fpn'})
    model = save_model(
        build_segmenter(backbone, 'fpn', 4, seed=0), spec, tmp_path / 'm.safetensors'
    )
    (tmp_path / 'scenes').mkdir()
    for number, side in enumerate((300, 700)):
        values = np.random.default_rng(number).integers(0, 255, (3, side, side), dtype=np.uint8)
        write_raster(tmp_path / 'scenes' / f'{number}.tif', values)
    arguments = [
        'predict', str(tmp_path / 'scenes'), '--model', str(model), '--device', 'cpu',
        '--precision', '32', '--block', '300', '--batch', '16', '--probabilities',
        '--uncertainty', 'entropy', '--vector', '--min-area', '2000',
    ]  # fmt: skip
    asked = json.dumps([arguments, str(tmp_path / 'whole'), str(tmp_path / 'out'), KILLS])
    run = subprocess.run(
        [sys.executable, '-c', PROGRAM, asked],
        capture_output=True, text=True, check=False, env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert result['kills'] == KILLS
    assert result['files'] == 2 * 6  # three layers, polygons, style and names
