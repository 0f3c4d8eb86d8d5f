"""Rasters of STAC items, item collections, collections and catalogues, in files or on the web."""

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from torchgeo_explora.errors import ImageError

ENDINGS = ('.json', '.geojson')
"""Ends of the names of STAC files."""

TIMEOUT = 30.0
"""Seconds after which a server that says nothing is given up."""

_RASTERS = ('image/tiff', 'image/vnd.stac.geotiff', 'image/jp2', 'application/x-geotiff')
_ENDS = ('.tif', '.tiff', '.vrt', '.jp2', '.img')
_NOT_DATA = {'thumbnail', 'overview', 'metadata', 'data-mask', 'cloud', 'snow-ice'}
_PLACE = re.compile(r'^[a-z][a-z0-9+.-]+://|^/vsi', re.IGNORECASE)
_UNSAFE = re.compile(r'[^\w.-]+')


@dataclass(frozen=True)
class StacRaster:
    """A raster that a STAC item names.

    Args:
        path: What GDAL opens.
        name: For the results: the item's id.
    """

    path: str
    name: str


def is_stac(item: str) -> bool:
    """Whether something that is given as a source may be a STAC file, by its name."""
    path = urllib.parse.urlsplit(item).path if '://' in item else item
    return path.lower().endswith(ENDINGS)


def stac_rasters(place: str, asset: str | None = None) -> Iterator[StacRaster | ImageError]:
    """List the rasters of a STAC file.

    Args:
        place: Path or ``http(s)`` address of an item, an item collection (a FeatureCollection), a
            collection or a catalogue, whose items and children are followed.
        asset: Key of the asset to take of each item; the only raster, or else the only raster with
            the role ``data``, when not given.

    Yields:
        One raster an item, or the reason why there is none of it.
    """
    yield from _of_file(place, asset, set())


def _of_file(place: str, asset: str | None, seen: set[str]) -> Iterator[StacRaster | ImageError]:
    key = place if '://' in place else str(Path(place).resolve())
    if key in seen:  # catalogues may name one another
        return
    seen.add(key)
    try:
        content = _read(place)
        found = list(_items(place, content))
        links = _links(place, content)
    except ImageError as error:
        yield error
        return
    for item in found:
        yield _raster(place, item, asset)
    for link in links:
        yield from _of_file(link, asset, seen)


def _read(place: str) -> Mapping[str, Any]:
    try:
        if '://' in place:
            request = urllib.request.Request(place, headers={'Accept': 'application/json'})
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                text = answer.read().decode('utf-8')
        else:
            text = Path(place).read_text(encoding='utf-8')
        content = json.loads(text)
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise ImageError(
            f'{place} cannot be read as a STAC file ({error}): give a path or http address of '
            'undamaged JSON.'
        ) from error
    if not isinstance(content, dict):
        raise ImageError(f'{place} is no STAC file: it holds no JSON object.')
    return content


def _items(place: str, content: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    kind = content.get('type')
    if kind == 'Feature' and 'assets' in content:
        yield content
    elif kind == 'FeatureCollection' and _stac_features(content):
        if any(link.get('rel') == 'next' for link in content.get('links', ())):
            raise ImageError(
                f'{place} is one page of a longer answer (it links to the next): fetch all pages '
                'into one file first.'
            )
        yield from content['features']
    elif kind not in {'Collection', 'Catalog'}:
        raise ImageError(
            f'{place} is no STAC file: give an item, an item collection, a collection or a '
            'catalogue.'
        )


def _stac_features(content: Mapping[str, Any]) -> bool:
    features = content.get('features')
    return isinstance(features, list) and all('assets' in feature for feature in features)


def _links(place: str, content: Mapping[str, Any]) -> list[str]:
    """Addresses of the items and children of a collection or catalogue."""
    if content.get('type') not in {'Collection', 'Catalog'}:
        return []
    wanted = [link for link in content.get('links', ()) if link.get('rel') in {'item', 'child'}]
    if not wanted:
        raise ImageError(f'{place} links to no item: give the file of an item or item collection.')
    return [_resolve(place, str(link.get('href', ''))) for link in wanted]


def _resolve(place: str, href: str) -> str:
    """Return where a reference leads that a file makes."""
    if href.startswith('file://'):
        return urllib.request.url2pathname(urllib.parse.urlsplit(href).path)
    if _PLACE.match(href) or Path(href).is_absolute():
        return href
    if '://' in place:
        return urllib.parse.urljoin(place, href)
    return str(Path(place).parent / href)


def _raster(place: str, item: Mapping[str, Any], asset: str | None) -> StacRaster | ImageError:
    name = str(item.get('id', ''))
    assets = item['assets'] if isinstance(item['assets'], dict) else {}
    rasters = {key: value for key, value in assets.items() if _is_raster(value)}
    where = f'{place}, item {name!r}'
    if asset is not None and asset not in assets:
        return ImageError(
            f'{where} has no asset {asset!r}: choose from {", ".join(assets) or "(none)"} with '
            '--asset.'
        )
    chosen = [asset] if asset is not None else _choose(rasters)
    if len(chosen) != 1:
        found = f'the rasters {", ".join(chosen)}' if chosen else 'no raster'
        return ImageError(
            f'{where} has {found} among its assets ({", ".join(assets) or "none"}): choose one with '
            '--asset; bands in files of their own make one raster by `gdalbuildvrt -separate`.'
        )
    href = _resolve(place, str(assets[chosen[0]].get('href', '')))
    return StacRaster(href, _UNSAFE.sub('_', name) or PurePosixPath(place).stem)


def _is_raster(asset: Mapping[str, Any]) -> bool:
    kind = str(asset.get('type', '')).lower().replace(' ', '')
    path = urllib.parse.urlsplit(str(asset.get('href', ''))).path.lower()
    roles = set(asset.get('roles') or ())
    known = kind.startswith(_RASTERS) if kind else path.endswith(_ENDS)
    return known and not roles & _NOT_DATA


def _choose(rasters: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Keys of the assets that hold the image, where that can be told."""
    if len(rasters) < 2:
        return list(rasters)
    data = [key for key, asset in rasters.items() if 'data' in (asset.get('roles') or ())]
    return data if len(data) == 1 else list(rasters)
