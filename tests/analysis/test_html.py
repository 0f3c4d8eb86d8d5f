"""A page is one well-formed file: everything escaped, nothing loaded from elsewhere."""

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from torchgeo_explora._figures import new_figure
from torchgeo_explora.analysis import Page
from torchgeo_explora.analysis.html import Picture
from torchgeo_explora.errors import ConfigError, OutputError

VOID = {'meta', 'img'}
NASTY = '<script>alert("1")</script> & \'x\''


class Reader(HTMLParser):
    """Collects texts, attributes and tags, and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.values: dict[str, list[str]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.values.setdefault(name, []).append(value or '')
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(page: Page) -> Reader:
    reader = Reader()
    reader.feed(page.html())
    assert reader.open == []
    return reader


def figure_bytes() -> bytes:
    figure = new_figure(1, 1)
    figure.add_subplot().plot([0, 1])
    return base64.b64decode(read(Page('x').figure(figure, 'c', 'a')).values['src'][0].split(',')[1])


def full_page(picture: bytes) -> Page:
    page = Page(NASTY, NASTY).heading(NASTY).heading(NASTY, 3).text(f'{NASTY}\n\nsecond')
    page.note(NASTY).items([NASTY]).table([[NASTY, 1]], [NASTY, 'n'], NASTY)
    page.figure(picture, NASTY, NASTY).pictures([(picture, NASTY, NASTY)] * 2)
    return page.details(NASTY, NASTY)


def test_every_text_is_escaped() -> None:
    found = read(full_page(figure_bytes()))
    assert 'script' not in found.tags
    assert found.values['alt'] == [NASTY] * 3
    assert found.texts.count(NASTY) == 16


def test_nothing_is_loaded_from_elsewhere() -> None:
    page = full_page(figure_bytes())
    found = read(page)
    assert all(source.startswith('data:image/png;base64,') for source in found.values['src'])
    assert 'href' not in found.values
    assert 'url(' not in page.html()
    assert '@import' not in page.html()


@pytest.mark.parametrize('given', ['figure', 'bytes', 'path', 'text'])
def test_a_picture_is_embedded_as_it_is(given: str, tmp_path: Path) -> None:
    picture = figure_bytes()
    path = tmp_path / 'a.png'
    path.write_bytes(picture)
    figure = new_figure(1, 1)
    figure.add_subplot().plot([0, 1])
    forms: dict[str, Picture] = {
        'figure': figure,
        'bytes': picture,
        'path': path,
        'text': str(path),
    }
    source = read(Page('x').figure(forms[given], 'c', 'a')).values['src'][0]
    assert base64.b64decode(source.removeprefix('data:image/png;base64,')) == picture


def test_jpeg_is_told_from_png() -> None:
    buffer = io.BytesIO()
    Image.new('RGB', (30, 10)).save(buffer, 'JPEG')
    found = read(Page('x').figure(buffer.getvalue(), 'c', 'a'))
    assert found.values['src'][0].startswith('data:image/jpeg;')
    assert (found.values['width'], found.values['height']) == (['30'], ['10'])
    assert 'wide' in found.values['class']


@pytest.mark.parametrize(
    ('column', 'kind'),
    [
        ((1, 2.5), 'number'),
        (('81.3 ± 0.4', '-2 %', None), 'number'),
        (('1,024', '-'), 'number'),
        (('nan',), 'number'),
        (('a', 1), 'text'),
        ((None, ''), 'text'),
    ],
)
def test_columns_of_numbers_stand_to_the_right(column: tuple[object, ...], kind: str) -> None:
    page = Page('x').table([[cell] for cell in column], ['head'])
    assert set(read(page).values['class']) == {'scroll', kind}


def test_a_table_may_be_empty_and_none_is_an_empty_cell() -> None:
    assert '<tbody></tbody>' in Page('x').table([], ['a', 'b']).html()
    assert '<td class="text"></td>' in Page('x').table([[None]], ['a']).html()


def test_a_written_page_is_the_page(tmp_path: Path) -> None:
    page = Page('Größe').text('αβγ')
    path = page.write(tmp_path / 'deep' / 'report.html')
    assert path.read_text(encoding='utf-8') == page.html()
    assert [item.name for item in path.parent.iterdir()] == ['report.html']


def test_bad_input_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='has 1 cells and the header 2'):
        Page('x').table([[1]], ['a', 'b'])
    with pytest.raises(ConfigError, match='level 1: give 2 or 3'):
        Page('x').heading('h', 1)
    with pytest.raises(ConfigError, match='give PNG or JPEG'):
        Page('x').figure(b'GIF89a', 'c', 'a')
    with pytest.raises(ConfigError, match=r'no\.png could not be read'):
        Page('x').figure(tmp_path / 'no.png', 'c', 'a')
    (tmp_path / 'file').write_text('')
    with pytest.raises(OutputError):
        Page('x').write(tmp_path / 'file' / 'report.html')
