"""``info``: what a weights file or adapter is, or what a run did and whether it helped."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchgeo_explora._run_record import read_record
from torchgeo_explora.adapters.peft import ADAPTER_CONFIG
from torchgeo_explora.cli.console import duration, say, size
from torchgeo_explora.cli.info_run import record_lines
from torchgeo_explora.cli.run_folder import RunFolder, read_json
from torchgeo_explora.errors import WeightsError
from torchgeo_explora.models import describe_file, describe_peft

WRITTEN = ('model.safetensors', 'explora.safetensors')
"""What `torchgeo fit` leaves in its folder, most telling first."""


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Args:
        args: From the parser.

    Returns:
        0.

    Raises:
        ExploraError: If there is nothing that can be described.
    """
    content, lines = describe(Path(args.path).expanduser())
    for line in [json.dumps(content, indent=2)] if args.json else lines:
        say(line)
    return 0


def describe(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return what a path holds, as numbers and texts and as lines to read.

    Args:
        path: A weights file, the folder of a run, or that of a PEFT adapter.

    Raises:
        ExploraError: If there is nothing that can be described.
    """
    if not path.is_dir():
        content = describe_file(path)
        return content, _file_lines(content)
    record = read_record(path)
    content, lines = _describe_folder(path, record)
    if record is None:
        return content, lines
    return {**content, 'run': record}, [*lines, *record_lines(record)]


def _describe_folder(
    path: Path, record: Mapping[str, Any] | None
) -> tuple[dict[str, Any], list[str]]:
    """Describe what a folder holds beside the record of its run."""
    if (path / ADAPTER_CONFIG).is_file():
        content = describe_peft(path)
        return content, _peft_lines(content)
    folder = RunFolder(path)
    if record is not None and is_adaptation(record):
        content = read_json(folder.report) if folder.report.is_file() else dict(record)
        return content, _run_lines(content)
    weights = [path / name for name in WRITTEN if (path / name).is_file()]
    if weights:  # of `torchgeo fit`
        content = describe_file(weights[0])
        return content, _file_lines(content)
    if record is None:
        raise WeightsError(
            f'{path} is no folder of a run: give one that this program or `torchgeo fit` wrote, or '
            'a weights file.'
        )
    return {}, []


def is_adaptation(record: Mapping[str, Any]) -> bool:
    """Whether a record is of ``adapt``; one without a command is of a version that had no other."""
    settings = record.get('settings', {})
    return 'preset' in settings and record.get('command', 'adapt') == 'adapt'


def _file_lines(content: dict[str, Any]) -> list[str]:
    lines = [f'{content["path"]}: {content["kind"]}']
    if content.get('architecture') is not None:
        lines.append(f'  model       {content["architecture"]}')
        lines.append(f'  timm name   {content["model"] or "not one of the usual sizes"}')
        lines.append(f'  encoder     {content["encoder_parameters"]:,} parameters')
        lines.append(f'  bands       {content["bands"]}')
    if content.get('grid') is not None:
        height, width = content['grid']
        lines.append(f'  positions   {height} x {width} patches')
    if content.get('root'):
        lines.append(f'  keys under  {content["root"]}')
    lines += _spec_lines(content.get('fitted')) + _delta_lines(content.get('delta'))
    lines += [
        f'  tensors     {content["tensors"]} of {", ".join(content["dtypes"])}, '
        f'{content["parameters"]:,} values',
        f'  size        {size(content["bytes"])}',
        f'  sha256      {content["sha256"]}',
    ]
    told = {'spec', 'config'} if {'fitted', 'delta'} & content.keys() else set()
    return lines + [
        f'  {name:<11} {_short(text)}'
        for name, text in sorted(content['metadata'].items())
        if name not in told
    ]


def _spec_lines(spec: dict[str, Any] | None) -> list[str]:
    """What a fitted model does, and for which images."""
    if spec is None:
        return []
    resolution = spec['resolution']
    on = '' if resolution is None else f' of {resolution:g} (metres, or units of the CRS)'
    lines = [
        f'  task        {spec["task"]}, {len(spec["classes"])} classes',
        f'  classes     {_short(", ".join(spec["classes"]))}',
        f'  band names  {_short(", ".join(spec["bands"]))}',
        f'  fitted on   {spec["image_size"]} px{on}',
        f'  built with  {_short(json.dumps(spec["options"]))}',
    ]
    if spec['scale'] is not None:
        pairs = ', '.join(f'{low:g} to {high:g}' for low, high in spec['scale'])
        lines.append(f'  raw values  {_short(pairs)} become 0 to 1')
    if spec.get('intact') is False:
        lines.append('  CHANGED     the weights are not those that the description was written for')
    return lines


def _delta_lines(delta: dict[str, Any] | None) -> list[str]:
    """What an adaptation trained, and what it belongs to."""
    if delta is None:
        return []
    blocks = ', '.join(map(str, delta['unfreeze_blocks']))
    return [
        f'  belongs to  {delta["base"] or "a model that is not named"}, started from '
        f'{delta["start"] or "weights that are not named"}',
        f'  trained     rank {delta["rank"]}, blocks in full: {blocks or "none"}',
    ]


def _peft_lines(content: dict[str, Any]) -> list[str]:
    lines = [
        f'{content["path"]}: {content["kind"]}',
        f'  base        {content["base"] or "not named"}',
        f'  factors     rank {content["rank"]} (stacked), alpha {content["alpha"]}, '
        f'{content["parameters"]:,} values',
        f'  size        {size(content["bytes"])}',
    ]
    if content['head'] is not None:
        lines.append(f'  start       {content["head"]["start"] or "not named"}')
        lines += _spec_lines(content['head']['spec'])
    return lines


def _short(text: str, length: int = 100) -> str:
    return text if len(text) <= length else f'{text[:length]}...'


def _run_lines(content: dict[str, Any]) -> list[str]:
    settings = content['settings']
    lines = [
        f'Run on {settings["folder"]}',
        f'  model       {settings["model"]}, weights {settings["weights"]}',
        f'  preset      {settings["preset"]}, seed {settings["seed"]}',
    ]
    if 'outcome' not in content:
        return [*lines, '  not finished: go on with `torchgeo-explora adapt --out DIR --resume`']
    training = content['training']
    images, left_out = content['images'], content['images']['left_out']
    lines += [
        f'  trained     {content["trainable_parameters"]:,} of '
        f'{content["encoder_parameters"]:,} encoder weights',
        f'  images      {images["adapted_to"]:,}, {len(left_out)} left out',
        f'  steps       {content["steps"]:,} of {content["steps_planned"]:,}, '
        f'batch {content["batch_size"]}, {content["precision"]}',
    ]
    if training['seconds'] is not None:
        lines.append(f'  time        {duration(training["seconds"])} of training')
    lines.append(f'  hardware    {content["environment"]["hardware"]}')
    lines += [f'  left out    {path}: {reason}' for path, reason in list(left_out.items())[:5]]
    return [*lines, content['sentence']]
