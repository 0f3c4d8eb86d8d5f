"""``export --to onnx|pt2|stac``: models for other programs, compared with PyTorch before they stay."""

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from torchgeo_explora.adapters import merge_lora
from torchgeo_explora.cli.choices import parse_bands
from torchgeo_explora.cli.console import complain, percent, say, size
from torchgeo_explora.cli.export import find_source, open_source
from torchgeo_explora.cli.info import WRITTEN
from torchgeo_explora.errors import ConfigError, OutputError
from torchgeo_explora.export import (
    Parity,
    PortableModel,
    export_onnx,
    export_program,
    export_stac,
    portable_backbone,
    portable_model,
    random_chip,
)
from torchgeo_explora.export.deepness import metres_of
from torchgeo_explora.export.onnx import OPSET, needed_packages
from torchgeo_explora.export.portable import trace
from torchgeo_explora.export.stac import needed_validator
from torchgeo_explora.inference import fit_raster, read_info
from torchgeo_explora.inference.raster import opened, read_block, scale_to_unit
from torchgeo_explora.inference.windows import Block, Interval
from torchgeo_explora.models import load_model, read_input, read_metadata, save_backbone
from torchgeo_explora.models.fitted import FORMAT as FITTED_FORMAT
from torchgeo_explora.models.fitted import find_backbone

type Writer = Callable[[PortableModel, Path, Tensor, ExportedProgram], Parity]


def write(args: argparse.Namespace, given: Path, out: Path) -> int:
    """Write a model for other programs.

    Args:
        args: From the parser.
        given: File of the model, or the folder of a run.
        out: What to write.

    Returns:
        0.

    Raises:
        ExploraError: If it cannot be written, or would not give what the model in PyTorch gives.
    """
    _check(args, out)
    path = find_model(given)
    model = open_model(path, args)
    introduce(path, model, args)
    chip = random_chip(model) if args.chip is None else read_chip(args.chip, model, args.bands)
    if args.to == 'stac':
        write_folder(model, path, out, chip, args.resolution)
        return 0
    program = trace(model)
    write_one = _onnx(args.resolution) if args.to == 'onnx' else _program
    conclude(out, write_one(model, out, chip, program))
    return 0


def _check(args: argparse.Namespace, out: Path) -> None:
    """Refuse before anything is computed what could not be finished."""
    if args.to == 'pt2' and args.resolution is not None:
        raise ConfigError('--resolution is for onnx and stac: a .pt2 file does not tell it.')
    if args.resolution is not None and not 0 < args.resolution < float('inf'):
        raise ConfigError(f'--resolution is {args.resolution}: give metres, above 0.')
    if args.bands is not None and args.chip is None:
        raise ConfigError('--bands chooses the bands of --chip: give a raster as --chip.')
    suffixes = {'onnx': '.onnx', 'pt2': '.pt2', 'stac': ''}
    if out.suffix != suffixes[args.to]:
        ending = f'does not end in {suffixes[args.to]}' if args.to != 'stac' else 'names a file'
        kind = (
            'a name that does' if args.to != 'stac' else 'a new folder, without a dot in its name'
        )
        raise ConfigError(f'--out is {out}, which {ending}: give {kind}.')
    if args.to != 'pt2':
        needed_packages()
    if args.to == 'stac':
        needed_validator()


def find_model(path: Path) -> Path:
    """Return the file of a model: in the folder of a run, what the run was for.

    Args:
        path: A file, or the folder of a run of ``adapt`` or ``torchgeo fit``.

    Raises:
        WeightsError: If there is none.
    """
    found = [path / name for name in WRITTEN if path.is_dir() and (path / name).is_file()]
    return found[0] if found else find_source(path, 'merged')


def open_model(path: Path, args: argparse.Namespace) -> PortableModel:
    """Read a fitted model, or a backbone of any kind.

    Args:
        path: Its file.
        args: From the parser.

    Raises:
        ExploraError: If it cannot be read, or cannot be exported.
    """
    if read_metadata(path).get('format') == FITTED_FORMAT:
        if args.pooling is not None:
            raise ConfigError(
                f'--pooling is for backbones, and {path} is a fitted model: leave it away.'
            )
        model, spec = load_model(path)
        return portable_model(model, spec, args.image_size)
    source = open_source(path, 'merged', args.model, args.weights)
    backbone = source.model if source.config is None else merge_lora(source.model)
    name = source.metadata['base']
    images = read_input(path, name)
    say(f'Expected images: {images.source}')
    return portable_backbone(backbone, name, images, args.image_size, args.pooling)


def introduce(path: Path, model: PortableModel, args: argparse.Namespace) -> None:
    """Say what will be written, and what a reader of it will not find."""
    spec = model.spec
    what = f'{len(spec.classes)} classes' if spec.classes else f'{spec.outputs} numbers an image'
    say(
        f'{path}: {spec.task}, {what}, from {len(spec.images.bands)} bands '
        f'({", ".join(spec.images.bands)}), {spec.model}, {spec.parameters:,} weights'
    )
    say(f'Tiles of {spec.side} x {spec.side} pixels, standardised, in batches of any size')
    if args.to != 'pt2' and args.resolution is None and metres_of(spec) is None:
        complain(
            'warning',
            'the size of a pixel in metres is not known, so that none is written: give it as '
            '--resolution.',
        )
    if args.to == 'onnx' and spec.task == 'classification':
        complain(
            'warning',
            'Deepness has no type for models of one class a tile: it will not make maps of this '
            'file, other programs can.',
        )


def read_chip(file: str, model: PortableModel, bands: list[str] | None) -> Tensor:
    """Read the middle of a raster as the model sees it.

    Args:
        file: The raster.
        model: The model.
        bands: Of the raster, in the order of the model's; None to find them by name.

    Returns:
        Standardised image (bands, side, side); a raster that is smaller is continued by its edge.

    Raises:
        ImageError: If it cannot be read, or does not fit the model.
    """
    info, images, side = read_info(file), model.spec.images, model.spec.side
    wanted = None if bands is None else parse_bands(bands)
    fit = fit_raster(info, images, wanted, force=True)  # any values do to compare two models
    if fit.overridden:
        reasons = '; '.join(fit.overridden)
        complain('warning', f'{file} does not fit the model: {reasons}; compared all the same.')
    rows, columns = (_middle(length, side) for length in (info.extent.height, info.extent.width))
    with opened(info.path) as source:
        pixels = read_block(source, info, fit.selection, Block(rows, columns))
    unit = np.empty(pixels.shape, dtype=np.float32)
    scale_to_unit(pixels, fit.low, fit.high, unit)
    missing = [(0, side - length) for length in unit.shape[1:]]
    whole = torch.from_numpy(np.pad(unit, [(0, 0), *missing], mode='edge'))
    mean, std = (torch.tensor(values)[:, None, None] for values in (images.mean, images.std))
    return (whole - mean) / std


def _middle(length: int, side: int) -> Interval:
    first = max(length - side, 0) // 2
    return Interval(first, min(first + side, length))


def _onnx(resolution: float | None) -> Writer:
    def write_onnx(
        model: PortableModel, path: Path, chip: Tensor, program: ExportedProgram
    ) -> Parity:
        return export_onnx(model, path, chip, resolution=resolution, program=program)

    return write_onnx


def _program(model: PortableModel, path: Path, chip: Tensor, program: ExportedProgram) -> Parity:
    return export_program(model, path, chip, program=program)


def write_folder(
    model: PortableModel, path: Path, out: Path, chip: Tensor, resolution: float | None
) -> None:
    """Write a STAC item with the model as ONNX, as a program and as weights beside it.

    Args:
        model: The model.
        path: Where it was read.
        out: The folder, which appears when it is complete.
        chip: Standardised image to compare on.
        resolution: Size of a pixel in metres; None for what the model says.

    Raises:
        OutputError: If something differs or cannot be written.
    """
    program = trace(model)
    with _new_folder(out) as folder:
        checked = {
            'onnx': _onnx(resolution)(model, folder / 'model.onnx', chip, program),
            'pt2': _program(model, folder / 'model.pt2', chip, program),
        }
        _copy_weights(model, path, folder / 'model.safetensors')
        assets = {file.suffix[1:]: file for file in sorted(folder.iterdir())}
        export_stac(model.spec, folder / 'item.json', assets, resolution=resolution)
    for name, parity in checked.items():
        conclude(out / f'model.{name}', parity)
    say(f'Wrote {out / "model.safetensors"}')
    say(f'Wrote {out / "item.json"}: valid by the schemas of STAC 1.1, MLM and file')


def _copy_weights(model: PortableModel, path: Path, out: Path) -> None:
    """Put the weights beside the other files: a fitted model as it is, a backbone merged."""
    if model.spec.task != 'embedding':
        shutil.copyfile(path, out)
        return
    _, backbone = find_backbone(model.network)
    save_backbone(backbone, out, {'base': model.spec.model, **model.spec.images.texts()})


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder beside ``out`` that takes its name once it is complete."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        hidden = Path(tempfile.mkdtemp(dir=out.parent, prefix=f'.{out.name}.', suffix='.part'))
    except OSError as error:
        raise _refused(out, error) from error
    try:
        yield hidden
        hidden.chmod(0o755)
        hidden.rename(out)
    except OSError as error:
        raise _refused(out, error) from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _refused(out: Path, error: OSError) -> OutputError:
    return OutputError(
        f'{out} could not be written ({error.strerror or error}): nothing was left behind. Choose '
        'a folder that can be created, on a disk with free space.'
    )


def conclude(path: Path, parity: Parity) -> None:
    """Say how close a written model is to the one in PyTorch."""
    same = '' if parity.agreement is None else f', {percent(parity.agreement)} of classes agree'
    kind = f', ONNX opset {OPSET}' if path.suffix == '.onnx' else ''
    say(
        f'Wrote {path} ({size(path.stat().st_size)}{kind}): differs from PyTorch by at most '
        f'{parity.difference:.1e} ({parity.bound:.0e} is allowed){same}'
    )
