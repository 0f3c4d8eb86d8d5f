"""Links inside README, docs and the built site lead somewhere, and pictures are said in words."""

import re
from pathlib import Path

import pytest
from PIL import Image

from tests.docs.blocks import PAGES, ROOT
from tests.docs.links import anchors, broken_in_site, broken_links

PICTURES = sorted((ROOT / 'docs' / 'pictures').glob('*.*'))
LARGEST = 200 * 1024


def test_links_of_pages() -> None:
    assert [link for page in PAGES for link in broken_links(page)] == []


def test_broken_links_are_seen(tmp_path: Path) -> None:
    other = tmp_path / 'other.md'
    other.write_text('# A `heading`, and more\n\n(place)=\n\n```text\n# no heading\n```\n')
    assert anchors(other) == {'a-heading-and-more', 'place'}
    page = tmp_path / 'page.md'
    page.write_text(
        '# Here\n[a](other.md) [b](other.md#a-heading-and-more) [c](#here) [d](https://x.org/y)\n'
        '[e](none.md) [f](other.md#no-heading) ![g](none.png) `[h](none.md)`\n'
    )
    found = broken_links(page)
    assert [line.split()[1] for line in found] == ['none.md', 'other.md#no-heading', 'none.png']


def test_broken_links_of_a_site_are_seen(tmp_path: Path) -> None:
    (tmp_path / 'a.html').write_text('<h1 id="x"></h1><a href="b/c.html#y"></a><a href="#z"></a>')
    (tmp_path / 'b').mkdir()
    (tmp_path / 'b' / 'c.html').write_text(
        '<p id="y"></p><a href="../a.html#x"></a><img src="d.png"><a href="mailto:a@b.org"></a>'
    )
    assert broken_in_site(tmp_path) == [
        'a.html: #z has no such anchor', 'b/c.html: d.png is not there',
    ]  # fmt: skip


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = {'index', 'api/index'}
    for page in PAGES:
        folder = page.parent.relative_to(ROOT / 'docs') if 'docs' in page.parts else None
        if folder is not None:
            for tree in re.findall(r'```\{toctree\}\n(.*?)```', page.read_text(), re.DOTALL):
                names = [line for line in tree.splitlines() if line and not line.startswith(':')]
                listed |= {(folder / name).as_posix() for name in names}
    docs = [page for page in PAGES if page.is_relative_to(ROOT / 'docs')]
    written = {page.relative_to(ROOT / 'docs').with_suffix('').as_posix() for page in docs}
    assert written - listed == set() and listed - written == set()


@pytest.mark.parametrize('path', PICTURES, ids=lambda path: path.name)
def test_pictures_are_small_used_and_said_in_words(path: Path) -> None:
    assert path.stat().st_size <= LARGEST
    Image.open(path).verify()
    texts = [page.read_text(encoding='utf-8') for page in PAGES]
    texts += [p.read_text(encoding='utf-8') for p in (ROOT / 'docs').rglob('*.json')]
    used = [text for text in texts if path.name in text]
    assert used, f'no page shows {path.name}'
    assert not any(re.search(rf'!\[\]\([^)]*{re.escape(path.name)}', text) for text in used)
