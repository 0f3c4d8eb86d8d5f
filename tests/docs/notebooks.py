r"""Run a notebook with other parameters, and keep what it printed and drew for its page.

As a script, by hand, on real data; the page of the notebook then shows these outputs::

    python -m tests.docs.notebooks adapt_and_judge --set "IMAGES='eurosat_rgb.zip'" \
        --about 'EuroSAT, one thread of a 2-core machine, 2026-11-23'
"""

import argparse
import base64
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

from tests.docs.blocks import ROOT

NOTEBOOKS = sorted((ROOT / 'examples' / 'notebooks').glob('*.ipynb'))
PAGES = ROOT / 'docs' / 'tutorials'
PICTURES = ROOT / 'docs' / 'pictures'
WIDTH = 1100
"""Pixels to which pictures are reduced."""


def run(
    path: Path,
    folder: Path,
    parameters: Mapping[str, str],
    seconds: int = 600,
    **options: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """Execute a notebook in a folder, its parameters replaced.

    Args:
        path: The notebook, which stays as it is.
        folder: Where it runs.
        parameters: Assignments that follow the cell of parameters: name, and value as Python.
        seconds: Limit of a cell.
        options: Further arguments of nbclient.

    Returns:
        The executed notebook.

    Raises:
        nbclient.exceptions.CellExecutionError: If a cell fails.
        ValueError: If a parameter is none of the notebook's.
    """
    notebook = nbformat.read(path, as_version=4)
    place = next(
        i for i, cell in enumerate(notebook.cells) if 'parameters' in cell.metadata.get('tags', ())
    )
    unknown = [
        name
        for name in parameters
        if not re.search(rf'^(?:\w+, )*{name}\b.* = ', notebook.cells[place].source, re.MULTILINE)
    ]
    if unknown:
        raise ValueError(f'{path.name} has no parameters {unknown}')
    lines = [f'{name} = {value}' for name, value in parameters.items()]
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell('\n'.join(lines)))
    client = NotebookClient(
        notebook, timeout=seconds, kernel_name='python3',
        resources={'metadata': {'path': folder}}, **options,
    )  # fmt: skip
    client.execute()
    del notebook.cells[place + 1]
    return notebook


def outputs(notebook: Any) -> Iterator[tuple[int, str, bytes | None]]:  # noqa: ANN401
    """Yield what each cell of code printed and drew: its number, text, and picture as PNG."""
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != 'code':
            continue
        text, picture = '', None
        for output in cell.outputs:
            if output.output_type == 'stream' and output.name == 'stdout':
                text += output.text
            data = output.get('data', {})
            if 'image/png' in data:
                picture = base64.b64decode(data['image/png'])
        yield number, text.strip(), picture


def keep(notebook: Any, name: str, about: Mapping[str, str]) -> Path:  # noqa: ANN401
    """Write the outputs of an executed notebook for its page.

    Args:
        notebook: From :func:`run`.
        name: Of the notebook.
        about: What the page says of the run.

    Returns:
        The file beside the page that names texts and pictures by the number of their cell.
    """
    kept: dict[str, dict[str, str]] = {}
    for number, text, picture in outputs(notebook):
        entry = {'text': text} if text else {}
        if picture is not None:
            entry['picture'] = _write_picture(picture, f'{name}_{number:02}').name
        if entry:
            kept[str(number)] = entry
    path = PAGES / f'{name}.json'
    content = {**about, 'cells': kept}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
    return path


def _write_picture(content: bytes, stem: str) -> Path:
    picture = Image.open(io.BytesIO(content)).convert('RGB')
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)))
    path = PICTURES / f'{stem}.jpg'
    picture.save(path, quality=85, optimize=True)
    return path


def main() -> None:
    """Run the notebook that the command line names, and keep its outputs."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('name', choices=[path.stem for path in NOTEBOOKS])
    parser.add_argument('--set', action='append', default=[], metavar='NAME=VALUE')
    parser.add_argument('--folder', type=Path, default=Path(), help='where it runs')
    parser.add_argument('--about', required=True, help='data, machine and date')
    parser.add_argument('--seconds', type=int, default=7200)
    args = parser.parse_args()
    parameters = dict(item.split('=', 1) for item in args.set)
    path = ROOT / 'examples' / 'notebooks' / f'{args.name}.ipynb'
    notebook = run(path, args.folder, parameters, args.seconds)
    given = [f'--set "{key}={value}"' for key, value in parameters.items()]
    command = ' '.join(['python -m tests.docs.notebooks', args.name, *given])
    keep(notebook, args.name, {'about': args.about, 'command': command})


if __name__ == '__main__':
    main()
