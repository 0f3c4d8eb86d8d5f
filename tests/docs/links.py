"""Links inside README and docs, and inside the built site.

As a script it checks a built site: ``python -m tests.docs.links FOLDER``.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LINK = re.compile(r'!?\[(?:[^\[\]]|\[[^\]]*\])*\]\((?P<target>[^()\s]+(?:\([^()]*\))?)\)')
_FENCES = re.compile(r'^ *(`{3,}).*?^ *\1$', re.MULTILINE | re.DOTALL)


def broken_links(page: Path) -> list[str]:
    """Links of a Markdown page whose file or heading is not there.

    Args:
        page: The file. Links to other sites are left alone.
    """
    text = _without_code(page.read_text(encoding='utf-8'))
    found = []
    for match in _LINK.finditer(text):
        parts = urlsplit(match['target'])
        if parts.scheme:
            continue
        target = page if parts.path == '' else page.parent / unquote(parts.path)
        if not target.exists():
            found.append(f'{page.name}: {match["target"]} is not there')
        elif parts.fragment and parts.fragment not in anchors(target):
            found.append(f'{page.name}: {match["target"]} has no such heading')
    return found


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a Markdown page, as GitHub and MyST make them."""
    text = _without_code(page.read_text(encoding='utf-8'), inline=False)
    headings = re.findall(r'^#{1,6} +(.+?) *$', text, re.MULTILINE)
    named = re.findall(r'^\((.+)\)=$', text, re.MULTILINE)
    return {*map(_slug, headings), *named}


def _slug(heading: str) -> str:
    return re.sub(r'[^\w\- ]', '', heading.lower()).strip().replace(' ', '-')


def _without_code(text: str, inline: bool = True) -> str:
    text = _FENCES.sub('', text)
    return re.sub(r'`[^`\n]*`', '', text) if inline else text


class _Page(HTMLParser):
    """Links and anchors of an HTML page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name in ('href', 'src'):
                self.links.append(value)
            elif name == 'id' or (name == 'name' and tag == 'a'):
                self.anchors.add(value)


def broken_in_site(root: Path) -> list[str]:
    """Links of a built site that lead nowhere inside it.

    Args:
        root: Folder of the HTML files.
    """
    pages = {path.resolve(): _Page(path) for path in sorted(root.rglob('*.html'))}
    found = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link == '#':
                continue
            target = path if parts.path == '' else (path.parent / unquote(parts.path)).resolve()
            if not target.exists():
                found.append(f'{path.relative_to(root.resolve())}: {link} is not there')
            elif (
                parts.fragment
                and target in pages
                and unquote(parts.fragment) not in pages[target].anchors
            ):
                found.append(f'{path.relative_to(root.resolve())}: {link} has no such anchor')
    return found


def main() -> int:
    """Check the site that the command line names; 1 if anything is broken."""
    found = broken_in_site(Path(sys.argv[1]))
    print('\n'.join(found) or 'Every link inside the site resolves.')  # noqa: T201
    return 1 if found else 0


if __name__ == '__main__':
    sys.exit(main())
