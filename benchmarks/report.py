"""Where results go: JSON with all that is needed to repeat them, and a table to read."""

from __future__ import annotations

import json
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch


def device_name(device: torch.device) -> str:
    """As the maker calls it."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    try:
        models = re.findall(r'model name\s*: (.*)', Path('/proc/cpuinfo').read_text())
    except OSError:
        models = []
    return f'{models[0] if models else platform.machine()}, {torch.get_num_threads()} threads'


def environment(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Machine, versions and commit."""
    commit = subprocess.run(
        ['git', 'describe', '--always', '--dirty', '--abbrev=12'],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    ).stdout.strip()
    return dict(
        device=device_name(device),
        system=platform.platform(),
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        dtype=str(dtype)[6:],
        commit=commit or None,
        date=datetime.now(timezone.utc).isoformat(timespec='seconds'),
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown; the first row is the head, and columns but the first are numbers."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        '| '
        + ' | '.join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths))
        )
        + ' |'
        for row in rows
    ]
    rule = (
        '|' + '|'.join('-' * (w + 2 - (i > 0)) + ':' * (i > 0) for i, w in enumerate(widths)) + '|'
    )
    return '\n'.join([lines[0], rule, *lines[1:]])


def place_of(folder: Path, made: dict[str, Any]) -> Path:
    """folder/<device> of such an environment."""
    return folder / re.sub(r'[^a-z0-9]+', '-', made['device'].lower()).strip('-')


def save(
    folder: Path, name: str, content: dict[str, Any], text: str, tool: str = 'benchmark.py'
) -> Path:
    """folder/<device>/<name>.json and .md, with the arguments of the tool that runs."""
    place = place_of(folder, content['environment'])
    place.mkdir(parents=True, exist_ok=True)
    content = dict(command=shlex.join(sys.argv[1:]), **content)
    (place / f'{name}.json').write_text(json.dumps(content, indent=1, default=str) + '\n')
    made = content['environment']
    head = (
        f'{made["device"]}; torch {made["torch"]}, {made["dtype"]}, commit {made["commit"]}, {made["date"]}\n\n'
        f'`python tools/{tool} {content["command"]}`\n\n'
    )
    (place / f'{name}.md').write_text(head + text + '\n')
    return place


def number(value: float | None, digits: int = 3) -> str:
    """With so many significant digits, no exponent; '-' for None."""
    if value is None:
        return '-'
    if value == 0:
        return '0'
    decimals = max(0, digits - 1 - int(torch.tensor(abs(value)).log10().floor()))
    return f'{value:,.{decimals}f}'
