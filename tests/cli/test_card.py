"""Model cards: what they say, that they load what they promise, and what is uploaded."""

import http.server
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard

from tests.cli.conftest import MODEL
from tests.tasks.toy import images
from tests.tasks.toy import trainer as make_trainer
from torchgeo_explora.cli import main
from torchgeo_explora.cli.card import WEIGHTS
from torchgeo_explora.datamodules import FolderDataModule
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.export.lineage import UNKNOWN, Lineage, combine, trace
from torchgeo_explora.models import create_backbone, load_model, save_backbone
from torchgeo_explora.tasks import LoRAClassification

OneLine = Callable[[], str]


def _share(source: Path, out: Path, *more: str) -> int:
    return main(['export', str(source), '--card', '--out', str(out), *more])


@pytest.fixture(scope='module')
def fitted(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """The folder of a fine-tuning and its test; not to be changed."""
    folder = tmp_path_factory.mktemp('fitted')
    data = FolderDataModule(images(folder / 'images', count=2), image_size=32, batch_size=6)
    task = LoRAClassification(MODEL, weights=str(weights), image_size=32, rank=2)
    trainer = make_trainer(folder, max_epochs=1)
    trainer.fit(task, data)
    trainer.test(task, data, verbose=False)
    return folder


def _front_matter(text: str) -> Any:  # noqa: ANN401
    """What the hub reads of a card."""
    return ModelCard(text).data


def _run_code(text: str, folder: Path) -> dict[str, Any]:
    """Run the Python of a card on the folder instead of on the hub."""
    code = re.findall(r'^```python\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)[0]
    alone = folder.parent / f'{folder.name}-alone'  # timm 1.0.28 fails where there are more weights
    alone.mkdir()
    for name in ('config.json', 'model.safetensors'):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, alone / name)
    code = code.replace('hf-hub:your-name/your-model', f'local-dir:{alone}')
    code = re.sub(r"hf_hub_download\('[^']*', '([^']*)'\)", rf"'{folder}/\1'", code)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def test_an_adapted_backbone_is_loaded_by_timm_alone(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / 'shared'
    assert _share(finished, out, '--license', 'mit') == 0
    text = (out / 'README.md').read_text()
    shared = _run_code(text, out)['model'].eval()
    model, _ = create_backbone(MODEL, finished / 'explora.safetensors')
    batch = torch.randn(2, 3, *shared.patch_embed.img_size, generator=torch.Generator())
    with torch.no_grad():
        assert torch.equal(shared(batch), model.eval()(batch))
    data = _front_matter(text)
    assert data.license == 'mit' and data.library_name == 'timm'
    assert data.pipeline_tag == 'image-feature-extraction'
    report = json.loads((finished / 'report.json').read_text())
    assert f'{report["images"]["adapted_to"]:,} images without labels' in text
    assert report['sentence'] in text
    assert f'{report["after"]["scores"]["linear"]:.4g}' in text
    results = data.eval_results
    assert results is not None
    assert results[0].metric_value == round(report['after']['scores']['linear'], 4)


def test_no_card_tells_the_folders_of_a_machine(
    finished: Path, fitted: Path, tmp_path: Path
) -> None:
    for name, source in (('backbone', finished), ('model', fitted), ('adapter', fitted / 'peft')):
        assert _share(source, tmp_path / name, '--license', 'mit') == 0
        for path in (tmp_path / name).iterdir():
            assert str(tmp_path.parent.parent).encode() not in path.read_bytes(), path


def test_a_fitted_model_is_described_and_loaded(fitted: Path, tmp_path: Path) -> None:
    out = tmp_path / 'shared'
    assert _share(fitted, out, '--license', 'apache-2.0') == 0
    text = (out / 'README.md').read_text()
    assert (out / WEIGHTS).read_bytes() == (fitted / 'model.safetensors').read_bytes()
    shared = _run_code(text, out)
    model, spec = load_model(fitted / 'model.safetensors')
    batch = torch.rand(2, 3, 32, 32)
    assert torch.equal(shared['model'](batch), model(batch))
    data = _front_matter(text)
    assert data.pipeline_tag == 'image-classification'
    assert data.library_name == 'torchgeo-explora'
    for name in (*spec.classes, 'base.safetensors', 'FolderDataModule'):
        assert name in text
    record = json.loads((fitted / 'run.json').read_text())
    accuracy = record['parts'][-1]['metrics']['test_OverallAccuracy']
    found = {r.metric_name: r.metric_value for r in data.eval_results or []}
    assert found['test_OverallAccuracy'] == round(accuracy, 4)
    assert 'the test images of FolderDataModule' in text


def test_an_adapter_is_shared_with_its_head(fitted: Path, tmp_path: Path) -> None:
    out = tmp_path / 'shared'
    assert _share(fitted / 'peft', out, '--license', 'mit') == 0
    assert {path.name for path in out.iterdir()} == {
        'README.md', 'adapter_config.json', 'adapter_model.safetensors', 'head.safetensors',
    }  # fmt: skip
    text = (out / 'README.md').read_text()
    assert _front_matter(text).library_name == 'peft'
    assert 'load_finetuned' in text


def test_what_is_not_measured_or_known_is_said(tmp_path: Path, weights: Path) -> None:
    assert _share(weights, tmp_path / 'shared') == 0
    text = (tmp_path / 'shared' / 'README.md').read_text()
    data = _front_matter(text)
    assert (data.license, data['license_name']) == ('other', UNKNOWN)
    for sentence in ('None were measured', 'Licence: not known', 'Check them.'):
        assert sentence in text


@pytest.mark.parametrize(
    ('start', 'licence'),
    [
        ('timm weights of vit_small_patch14_dinov2', 'apache-2.0'),
        ('timm weights of vit_base_patch16_224.mae', 'cc-by-nc-4.0'),
        ('ViTBase16_MAE_Natural_Weights.IMAGENET1K', 'cc-by-nc-4.0'),
        ('somewhere/dinov2_vitb14_pretrain.pth', 'apache-2.0'),
        ('ViTBase14_DINOv2_ExPLoRA_Weights.FMOW_RGB', UNKNOWN),
        ('my.safetensors', UNKNOWN),
        ('random', UNKNOWN),
    ],
)
def test_licences_come_from_the_first_weights(start: str, licence: str) -> None:
    assert trace(start).licence == licence


def test_weights_are_followed_back_from_file_to_file(tmp_path: Path) -> None:
    model, _ = create_backbone(MODEL, seed=0)
    first = save_backbone(
        model, tmp_path / 'first.safetensors', {'start': 'timm weights of vit_base_patch16_224.mae'}
    )
    second = save_backbone(model, tmp_path / 'second.safetensors', {'start': str(first)})
    assert trace(second).licence == 'cc-by-nc-4.0'
    assert trace(second).base_model == 'timm/vit_base_patch16_224.mae'
    first.unlink()
    assert trace(second).licence == UNKNOWN
    circle = tmp_path / 'circle.safetensors'
    save_backbone(model, circle, {'start': str(circle)})
    assert trace(circle).licence == UNKNOWN


def test_no_licence_allows_more_than_that_of_the_first_weights() -> None:
    bound = Lineage('MAE', 'cc-by-nc-4.0', 'as published')
    with pytest.raises(ConfigError, match='not for commercial use'):
        combine(bound, 'mit')
    assert combine(bound, None) == bound
    assert combine(bound, 'CC-BY-NC-SA-4.0').licence == 'cc-by-nc-sa-4.0'
    assert combine(Lineage('x', UNKNOWN, ''), 'mit').licence == 'mit'


class Hub:
    """What reached the hub."""

    def __init__(self) -> None:
        self.created: list[tuple[str, bool]] = []
        self.files: dict[str, bytes] = {}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Stands for the two calls by which the hub is reached."""
    hub = Hub()

    def create_repo(self: HfApi, repo_id: str, *, private: bool, exist_ok: bool) -> Any:  # noqa: ANN401
        assert exist_ok
        hub.created.append((repo_id, private))
        return type('RepoUrl', (str,), {'repo_id': repo_id})(f'https://hub.example/{repo_id}')

    def upload_folder(self: HfApi, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        assert commit_message
        hub.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}

    monkeypatch.setattr(HfApi, 'create_repo', create_repo)
    monkeypatch.setattr(HfApi, 'upload_folder', upload_folder)
    return hub


def test_nothing_is_uploaded_unless_asked_for(fitted: Path, tmp_path: Path, hub: Hub) -> None:
    assert _share(fitted, tmp_path / 'shared', '--license', 'mit') == 0
    assert hub.created == [] and hub.files == {}


def test_all_files_are_uploaded(
    fitted: Path, tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'shared'
    assert _share(fitted, out, '--license', 'mit', '--push', 'me/roofs', '--private') == 0
    assert hub.created == [('me/roofs', True)]
    assert hub.files == {path.name: path.read_bytes() for path in out.iterdir()}
    text = (out / 'README.md').read_text()
    assert '# roofs' in text and "'me/roofs'" in text
    assert 'https://hub.example/me/roofs' in capsys.readouterr().out


def test_an_unknown_licence_is_not_published(
    weights: Path, tmp_path: Path, hub: Hub, one_line: OneLine
) -> None:
    assert _share(weights, tmp_path / 'shared', '--push', 'me/model') == 2
    assert '--license' in one_line()
    assert hub.created == [] and not (tmp_path / 'shared').exists()


class _Refusing(http.server.BaseHTTPRequestHandler):
    """A hub that knows nobody."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get('Content-Length', 0)))
        content = json.dumps({'error': 'Invalid credentials.'}).encode()
        self.send_response(401)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""


@pytest.fixture
def refusing() -> Iterator[str]:
    """Address of a local hub that refuses every request."""
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Refusing)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_refused_upload_leaves_a_complete_folder(
    fitted: Path,
    tmp_path: Path,
    refusing: str,
    monkeypatch: pytest.MonkeyPatch,
    one_line: OneLine,
) -> None:
    monkeypatch.setattr('torchgeo_explora.cli.card.HfApi', lambda: HfApi(refusing, 'hf_none'))
    out = tmp_path / 'shared'
    assert _share(fitted, out, '--license', 'mit', '--push', 'me/model') == 2
    assert 'hf auth login' in one_line()
    assert (out / 'README.md').is_file() and (out / WEIGHTS).is_file()


@pytest.mark.parametrize('case', ['to', 'there', 'empty', 'checkpoint'])
def test_what_cannot_be_shared_is_refused(
    case: str, finished: Path, tmp_path: Path, one_line: OneLine
) -> None:
    source, out, more, word = finished, tmp_path / 'out', [], ''
    if case == 'to':
        more, word = ['--to', 'merged'], '--to'
    elif case == 'there':
        out.mkdir()
        word = 'there already'
    elif case == 'empty':
        source, word = tmp_path, 'explora.safetensors'
    else:
        source, word = finished / 'adapter.safetensors', '--to merged'
    before = set(tmp_path.rglob('*'))
    assert _share(source, out, *more) == 2
    assert word in one_line()
    assert set(tmp_path.rglob('*')) == before
