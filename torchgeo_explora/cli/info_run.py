"""What ``info`` prints of a run: its record, for people."""

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from torchgeo_explora._run_record import BROKEN_OFF, RUNNING
from torchgeo_explora.cli.console import duration

NAMED_PACKAGES = ('torch', 'timm', 'torchgeo', 'lightning', 'rasterio')
HASH, COMMIT = 16, 12
"""Digits that are printed; ``--json`` has all."""


def record_lines(record: Mapping[str, Any]) -> list[str]:
    """Lay out the record of a run.

    Args:
        record: What ``run.json`` holds.

    Returns:
        Lines; none for a record that a version before this one wrote, which has no parts.
    """
    parts: Sequence[Mapping[str, Any]] = record.get('parts', [])
    if not parts:
        return []
    lines = [f'Run of {record.get("command", parts[0]["command"])}: {state_of(parts[-1])}']
    lines += [f'  {part_line(part)}' for part in parts]
    last = parts[-1]
    lines += [f'  {name:<11} {text}' for name, text in _facts(last)]
    if last.get('error') is not None:
        lines.append(f'  ended with  {last["error"]}')
    return lines


def part_line(part: Mapping[str, Any]) -> str:
    """Say in one line what a part was: what ran, when, for how long, and how it ended."""
    begun = datetime.fromisoformat(part['started'])
    took = '' if part['seconds'] is None else f' for {duration(part["seconds"])}'
    share = '' if part.get('shard') is None else f' shard {part["shard"].replace("-of-", "/")}'
    where = f' on {part["process"]["host"]}' if 'process' in part else ''
    return f'{begun:%Y-%m-%d %H:%M:%S} UTC  {part["command"]}{share}{took}{where}: {state_of(part)}'


def state_of(part: Mapping[str, Any]) -> str:
    """How a part ended; one that says it runs is looked for where that can be done."""
    state: str = part['state']
    process = part.get('process', {})
    if state != RUNNING or process.get('host') != platform.node() or os.name != 'posix':
        return state
    return RUNNING if _alive(process['pid']) else f'{BROKEN_OFF} (killed, or the machine stopped)'


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # asks, and does nothing
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _facts(part: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    around = part['environment']
    yield 'package', f'torchgeo_explora {around["torchgeo_explora"]}{_commit(around.get("git"))}'
    named = [f'{name} {around["packages"][name]}' for name in NAMED_PACKAGES]
    yield 'versions', f'Python {around["python"]}, {", ".join(named)}'
    memory = '' if around.get('memory_gb') is None else f', {around["memory_gb"]} GB'
    yield 'hardware', f'{around["hardware"]} ({around["device"]}), {around["cpus"]} CPUs{memory}'
    if part.get('seed') is not None:
        yield 'seed', str(part['seed'])
    for role, weights in part.get('weights', {}).items():
        yield 'from', f'{role}: {weights["source"]}{_hash(weights.get("sha256"))}'
    for name, digest in part.get('files', {}).items():
        yield 'wrote', f'{name}{_hash(digest)}'
    for name, value in part.get('metrics', {}).items():
        yield 'metric', f'{name} {value if value is None else format(value, ".4g")}'


def _commit(git: Mapping[str, Any] | None) -> str:
    if git is None:
        return ', installed from no commit that is known'
    changed = len(git['changed'])
    return f', commit {git["commit"][:COMMIT]}{f" and {changed} changed files" if changed else ""}'


def _hash(digest: str | None) -> str:
    return '' if digest is None else f' (sha256 {digest[:HASH]})'
