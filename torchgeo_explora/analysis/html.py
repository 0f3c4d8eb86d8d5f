"""One HTML file that holds a whole report: texts, tables and pictures; it opens offline."""

import base64
import io
import math
import os
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Self, final

from matplotlib.figure import Figure
from PIL import Image, UnidentifiedImageError

from torchgeo_explora._files import replacing
from torchgeo_explora.errors import ConfigError

type Picture = bytes | str | os.PathLike[str] | Figure
"""Encoded PNG or JPEG, the path of such a file, or a figure to draw."""

_KINDS = {'PNG': 'image/png', 'JPEG': 'image/jpeg'}
_WIDE = 1.9
"""Width over height of pictures that a phone shows in part, to be moved sideways."""
_PARAGRAPH = re.compile(r'\n\s*\n')
_CSS = """
:root { color-scheme: light dark; --ink: #24292f; --soft: #57606a; --paper: #ffffff;
  --card: #f4f6f8; --line: #d0d7de; --accent: #1769aa; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa5b1; --paper: #12161b;
  --card: #1c2229; --line: #343c46; --accent: #6cb6ff; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 64rem; padding: 1.5rem clamp(0.9rem, 4vw, 2.5rem) 4rem;
  color: var(--ink); background: var(--paper); overflow-wrap: anywhere;
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: clamp(1.45rem, 4.5vw, 2rem); line-height: 1.2; margin: 0.5rem 0 0.75rem; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 2.5rem 0 0.5rem; padding-top: 0.75rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.75rem 0 0.25rem; }
p, ul { margin: 0.6rem 0; max-width: 46rem; }
ul { padding-left: 1.3rem; }
.lead { font-size: 1.1rem; color: var(--soft); }
.note { margin: 1rem 0; padding: 0.7rem 1rem; max-width: 46rem; background: var(--card);
  border-left: 4px solid var(--accent); border-radius: 0 6px 6px 0; }
.note p { margin: 0.2rem 0; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: 0.4rem; }
th, td { padding: 0.3rem 0.8rem 0.3rem 0; border-bottom: 1px solid var(--line);
  text-align: left; vertical-align: top; overflow-wrap: normal; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.text { min-width: 7rem; }
figure { margin: 1.2rem 0; }
figure img { display: block; max-width: 100%; height: auto; background: #ffffff;
  border: 1px solid var(--line); border-radius: 6px; }
@media (max-width: 40rem) { .wide { overflow-x: auto; }
  .wide img { max-width: none; width: auto; height: 15rem; } }
figcaption { color: var(--soft); font-size: 0.92rem; margin-top: 0.45rem; max-width: 46rem; }
.row { display: grid; gap: 1.2rem; margin: 1.2rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.row figure { margin: 0; }
details { margin: 1rem 0; }
summary { cursor: pointer; color: var(--accent); }
pre { overflow-x: auto; padding: 0.8rem 1rem; background: var(--card); border-radius: 6px;
  font: 0.85rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media print { body { max-width: none; } figure { break-inside: avoid; } }
"""


@final
class Page:
    """A page that is built from top to bottom, then written as one file.

    Every text is escaped, pictures are embedded, and nothing is loaded from elsewhere. The page
    has no script; it follows the reader's choice of light or dark, and fits a phone.

    Args:
        title: Title of the page, and its first heading.
        lead: A sentence below it.
    """

    def __init__(self, title: str, lead: str = '') -> None:
        self.title = title
        self._parts = [f'<h1>{escape(title)}</h1>']
        if lead:
            self._parts.append(f'<p class="lead">{escape(lead)}</p>')

    def heading(self, text: str, level: int = 2) -> Self:
        """Add a heading.

        Args:
            text: Of the heading.
            level: 2 for a section, 3 for a part of one.

        Raises:
            ConfigError: If the level is another.
        """
        if level not in {2, 3}:
            raise ConfigError(f'The heading {text!r} has level {level}: give 2 or 3.')
        return self._add(f'<h{level}>{escape(text)}</h{level}>')

    def text(self, text: str) -> Self:
        """Add paragraphs, separated by blank lines."""
        return self._add(_paragraphs(text))

    def note(self, text: str) -> Self:
        """Add paragraphs in a frame, for what a reader must not miss."""
        return self._add(f'<div class="note">{_paragraphs(text)}</div>')

    def items(self, texts: Iterable[str]) -> Self:
        """Add a list."""
        return self._add(f'<ul>{"".join(f"<li>{escape(text)}</li>" for text in texts)}</ul>')

    def table(
        self, rows: Sequence[Sequence[object]], header: Sequence[str], caption: str = ''
    ) -> Self:
        """Add a table; columns of numbers are aligned to the right.

        Args:
            rows: Cells; None is an empty one. Floats are written with ``str``: format them before.
            header: Of the columns.
            caption: Above the table.

        Raises:
            ConfigError: If a row has another number of cells than the header.
        """
        for row in rows:
            if len(row) != len(header):
                raise ConfigError(
                    f'A row of a table has {len(row)} cells and the header {len(header)}: '
                    f'give each row the columns {", ".join(header)}.'
                )
        kinds = ['number' if _numeric(column) else 'text' for column in zip(*rows, strict=True)]
        kinds = kinds if kinds else ['text'] * len(header)
        top = _cells('th', header, kinds, ' scope="col"')
        body = ''.join(f'<tr>{_cells("td", row, kinds)}</tr>' for row in rows)
        above = f'<caption>{escape(caption)}</caption>' if caption else ''
        return self._add(
            f'<div class="scroll" tabindex="0"><table>{above}<thead><tr>{top}</tr></thead>'
            f'<tbody>{body}</tbody></table></div>'
        )

    def figure(self, picture: Picture, caption: str, alt: str) -> Self:
        """Add a picture.

        Args:
            picture: PNG or JPEG, a file of one, or a figure.
            caption: Below it.
            alt: What it shows, for readers who do not see it.

        Raises:
            ConfigError: If it is no such picture, or cannot be read.
        """
        return self._add(_figure(picture, caption, alt))

    def pictures(self, pictures: Sequence[tuple[Picture, str, str]]) -> Self:
        """Add pictures side by side, below one another where there is no room.

        Args:
            pictures: Picture, caption and alternative text of each.

        Raises:
            ConfigError: As :meth:`figure`.
        """
        return self._add(f'<div class="row">{"".join(_figure(*item) for item in pictures)}</div>')

    def details(self, summary: str, text: str) -> Self:
        """Add a text that is folded away and shown as it is, for instance a configuration.

        Args:
            summary: What is seen while it is folded.
            text: Its lines.
        """
        return self._add(
            f'<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>'
        )

    def html(self) -> str:
        """Return the page."""
        body = '\n'.join(self._parts)
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<title>{escape(self.title)}</title>\n<style>{_CSS}</style>\n</head>\n'
            f'<body>\n{body}\n</body>\n</html>\n'
        )

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the page, whole or not at all.

        Args:
            path: The file.

        Returns:
            The path.

        Raises:
            OutputError: If it cannot be written.
        """
        final_name = Path(path)
        with replacing(final_name) as temporary:
            temporary.write_text(self.html(), encoding='utf-8')
        return final_name

    def _add(self, part: str) -> Self:
        self._parts.append(part)
        return self


def encode_figure(figure: Figure) -> bytes:
    """Return a figure as PNG, cut to what is drawn on it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', bbox_inches='tight', pad_inches=0.15)
    return buffer.getvalue()


def _paragraphs(text: str) -> str:
    parts = [part.strip() for part in _PARAGRAPH.split(text) if part.strip()]
    return ''.join(f'<p>{escape(part)}</p>' for part in parts)


def _cells(tag: str, values: Sequence[object], kinds: Sequence[str], more: str = '') -> str:
    return ''.join(
        f'<{tag} class="{kind}"{more}>{"" if value is None else escape(str(value))}</{tag}>'
        for value, kind in zip(values, kinds, strict=True)
    )


def _numeric(column: Sequence[object]) -> bool:
    """Whether the cells of a column are numbers, perhaps with a sign, a unit or a spread."""
    texts = ['' if cell is None else str(cell).strip() for cell in column]
    filled = [text for text in texts if text not in {'', '-', '–'}]
    return bool(filled) and all(_leading_number(text) for text in filled)


def _leading_number(text: str) -> bool:
    first = text.split()[0].lstrip('+-−').rstrip('%').replace(',', '')
    try:
        return not math.isnan(float(first)) or first == 'nan'
    except ValueError:
        return False


def _figure(picture: Picture, caption: str, alt: str) -> str:
    content = _content(picture)
    kind, width, height = _measure(content, alt)
    data = base64.b64encode(content).decode('ascii')
    image = (
        f'<img src="data:{kind};base64,{data}" alt="{escape(alt)}" width="{width}" '
        f'height="{height}">'
    )
    if width > _WIDE * height:
        image = f'<div class="wide" tabindex="0">{image}</div>'
    return f'<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>'


def _measure(content: bytes, alt: str) -> tuple[str, int, int]:
    """Media type, width and height of an encoded picture."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.format in _KINDS:
                return _KINDS[image.format], *image.size
    except UnidentifiedImageError:
        pass
    raise ConfigError(
        f'The picture {alt!r} begins with the bytes {content[:8]!r}: give PNG or JPEG.'
    )


def _content(picture: Picture) -> bytes:
    if isinstance(picture, Figure):
        return encode_figure(picture)
    if isinstance(picture, bytes):
        return picture
    try:
        return Path(picture).read_bytes()
    except OSError as error:
        raise ConfigError(
            f'The picture {os.fspath(picture)} could not be read ({error.strerror}): give the '
            'path of a PNG or JPEG file.'
        ) from error
