"""The notebooks run from end to end, on data that they make, with small models."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.docs.kernels import ForkedKernel
from tests.docs.notebooks import NOTEBOOKS, PAGES, PICTURES, outputs, run

SMALL: dict[str, dict[str, str]] = {
    'adapt_and_judge': {'MODEL': "'test_vit'", 'WEIGHTS': 'None', 'STEPS': '2', 'SIZE': '32'},
    'multispectral': {'STEPS': '2', 'SIZE': '32'},
    'geotiff_to_map': {'MODEL': "'test_vit'", 'WEIGHTS': 'None', 'EPOCHS': '1', 'SIZE': '64'},
}
PARTS: dict[str, tuple[str, ...]] = {
    'adapt_and_judge': (
        'images to adapt to, 240 to judge by',
        'kNN, k = 20',
        'one standard error is',
    ),
    'multispectral': ('held out', 'becomes 0', 'loss of the images held out'),
    'geotiff_to_map': ("'train':", 'IoU of roof', '_pred.tif', '_pred.gpkg'),
}
"""What each prints, among other things."""


@pytest.mark.slow
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path: Path, tmp_path: Path) -> None:
    done = run(path, tmp_path, SMALL[path.stem], kernel_manager_class=ForkedKernel)
    found = list(outputs(done))
    printed = '\n'.join(text for _, text, _ in found)
    assert [part for part in PARTS[path.stem] if part not in printed] == []
    assert sum(picture is not None for _, _, picture in found) >= 2


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_without_outputs(path: Path) -> None:
    notebook: dict[str, Any] = json.loads(path.read_text(encoding='utf-8'))
    code = [cell for cell in notebook['cells'] if cell['cell_type'] == 'code']
    assert all(cell['outputs'] == [] and cell['execution_count'] is None for cell in code)
    assert path.stat().st_size < 20_000
    names = [re.match(r'^(\w+) = ', line) for cell in code for line in cell['source']]
    assert any(name is not None and name[1] == 'OUT' for name in names)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_kept_outputs_belong_to_the_cells_of_the_notebook(path: Path) -> None:
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    kept: dict[str, Any] = json.loads((PAGES / f'{path.stem}.json').read_text(encoding='utf-8'))
    assert {'about', 'command', 'cells'} == set(kept)
    for number, entry in kept['cells'].items():
        assert cells[int(number)]['cell_type'] == 'code'
        if 'picture' in entry:
            assert (PICTURES / entry['picture']).is_file()
