"""Every script of `examples/` runs on data it makes, and says what it wrote."""

import ast
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / 'examples'
MAX_LINES = 120

# What each leaves in `output/examples/<name>`.
WRITTEN = {
    'adapt_folder': {'explora.safetensors', 'adapter.safetensors', 'run.json'},
    'adapt_geotiffs': {'explora.safetensors', 'adapter.safetensors', 'run.json'},
    'adapt_without_lightning': {'explora.safetensors'},
    'analyse': {'eigenvalues.png', 'position.png'},
    'embed_geotiff': {'embeddings', 'similar'},
    'export_model': {'model.onnx', 'hub'},
    'finetune': {'model.safetensors', 'test_report', 'peft', 'run.json'},
    'multispectral_mae': {'explora.safetensors', 'reconstructions', 'curve.png'},
    'predict_geotiff': {'maps'},
    'probe': set(),
    'segment': {'model.safetensors', 'maps', 'test_report'},
}
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob('*.py'))


def test_every_script_is_run() -> None:
    assert [*WRITTEN] == SCRIPTS


@pytest.mark.parametrize('name', SCRIPTS)
def test_a_script_is_short_and_stands_alone(name: str) -> None:
    text = (EXAMPLES / f'{name}.py').read_text(encoding='utf-8')
    assert len(text.splitlines()) < MAX_LINES
    imported = [
        node.module if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    ]
    assert not {str(module).split('.')[0] for module in imported} & {*SCRIPTS, 'examples', 'tests'}


@pytest.mark.slow
@pytest.mark.parametrize('name', SCRIPTS)
def test_a_script_runs(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if name == 'export_model':
        pytest.importorskip('onnxruntime')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', [f'{name}.py'])
    runpy.run_path(str(EXAMPLES / f'{name}.py'), run_name='__main__')
    folder = tmp_path / 'output' / 'examples' / name
    there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    assert there >= WRITTEN[name]
    assert capsys.readouterr().out.strip()
