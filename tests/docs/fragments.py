"""Check YAML of the pages: every class that it names is built with the arguments beside it."""

import importlib
from typing import Any

from jsonargparse import ArgumentParser

from torchgeo_explora.models import resolve_groups

KNOWN = {'seed_everything', 'trainer', 'model', 'data'}


def check_fragment(content: Any) -> None:  # noqa: ANN401
    """Build what a block of YAML describes.

    Args:
        content: The parsed block: a whole configuration, a part of one, or bands and groups.

    Raises:
        AssertionError: If it names nothing that can be checked.
    """
    assert isinstance(content, dict)
    checked = _build_classes(content)
    if {'bands', 'groups'} <= content.keys():
        checked += len(resolve_groups(content['bands'], content['groups']))
    partly = content.keys() <= KNOWN  # laid over a configuration by a command of the same page
    assert checked or partly, f'nothing in {sorted(content)} can be checked'


def _build_classes(node: Any) -> int:  # noqa: ANN401
    """Build every class of a tree, the outer ones with the inner ones as arguments."""
    if isinstance(node, list):
        return sum(map(_build_classes, node))
    if not isinstance(node, dict):
        return 0
    if isinstance(path := node.get('class_path'), str):
        module, _, name = path.rpartition('.')
        kind = getattr(importlib.import_module(module), name)
        parser = ArgumentParser()
        parser.add_subclass_arguments(kind, 'it')
        config = {'class_path': path, 'init_args': node.get('init_args', {})}
        parser.instantiate_classes(parser.parse_object({'it': config}))
        return 1
    return sum(map(_build_classes, node.values()))
