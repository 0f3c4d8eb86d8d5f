"""``info``: what a weights file is, or what a run did and whether it helped."""

import argparse
import json
from pathlib import Path
from typing import Any

from torchgeo_explora.cli.console import duration, say, size
from torchgeo_explora.cli.run_folder import RunFolder, read_json
from torchgeo_explora.errors import WeightsError
from torchgeo_explora.models import describe_file


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Args:
        args: From the parser.

    Returns:
        0.

    Raises:
        ExploraError: If there is nothing that can be described.
    """
    path = Path(args.path).expanduser()
    content = read_run(RunFolder(path)) if path.is_dir() else describe_file(path)
    if args.json:
        say(json.dumps(content, indent=2))
        return 0
    for line in _run_lines(content) if path.is_dir() else _file_lines(content):
        say(line)
    return 0


def read_run(folder: RunFolder) -> dict[str, Any]:
    """Return the report of a run, or its settings where it is not finished.

    Raises:
        WeightsError: If the folder is none of a run.
    """
    if folder.report.is_file():
        return read_json(folder.report)
    if folder.settings.is_file():
        return read_json(folder.settings)
    raise WeightsError(
        f'{folder.path} is no folder of a run: give one that `torchgeo-explora adapt` wrote, or a '
        'weights file.'
    )


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
    lines += [
        f'  tensors     {content["tensors"]} of {", ".join(content["dtypes"])}, '
        f'{content["parameters"]:,} values',
        f'  size        {size(content["bytes"])}',
        f'  sha256      {content["sha256"]}',
    ]
    return lines + [
        f'  {name:<11} {_short(text)}' for name, text in sorted(content['metadata'].items())
    ]


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
