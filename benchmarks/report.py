"""Write results: JSON with everything that is needed to repeat them, and a table to read."""

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

RESULTS = Path(__file__).resolve().parent / 'results'


def device_name(device: torch.device) -> str:
    """Name of a GPU, or of the CPU with the number of threads."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    try:
        models = re.findall(r'model name\s*: (.*)', Path('/proc/cpuinfo').read_text())
    except OSError:
        models = []
    return f'{models[0] if models else platform.machine()}, {torch.get_num_threads()} threads'


def environment(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Machine, versions, commit and date."""
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
        dtype=str(dtype).removeprefix('torch.'),
        commit=commit or None,
        date=datetime.now(timezone.utc).isoformat(timespec='seconds'),
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown table; the first row is the head, the first column is text, the others numbers."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]
    rule = '|' + '-' * (widths[0] + 2) + '|'
    for width in widths[1:]:
        rule += '-' * (width + 1) + ':|'

    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join([lines[0], rule, *lines[1:]])


def compact(text: str) -> str:
    """The same Markdown without the spaces that align a table's columns.

    For files, in which one long note would widen every row.
    """
    lines = []
    for line in text.split('\n'):
        if line.startswith('|'):
            cells = [cell.strip() for cell in line.strip('|').split('|')]
            if all(set(cell) <= {'-', ':'} and cell for cell in cells):
                cells = ['---:' if cell.endswith(':') else '---' for cell in cells]
            line = f'| {" | ".join(cells)} |'
        lines.append(line)
    return '\n'.join(lines)


def keep_out_of_results(out: Path, machine: dict[str, Any]) -> Path:
    """Where results go: those of a commit with changes of one's own cannot be repeated, so they are
    kept out of the repository."""
    if not str(machine['commit']).endswith('-dirty') or out.resolve() != RESULTS:
        return out
    instead = Path('work_dirs/results')
    print(
        f'uncommitted changes: results go to {instead} instead of {out}; commit, then run it again',
        file=sys.stderr,
    )
    return instead


def folder_of(out: Path, machine: dict[str, Any]) -> Path:
    """out/<device> of such an environment."""
    return out / re.sub(r'[^a-z0-9]+', '-', machine['device'].lower()).strip('-')


def save(
    out: Path, name: str, content: dict[str, Any], text: str, tool: str = 'benchmark.py'
) -> Path:
    """Write out/<device>/<name>.json and .md, with the arguments of this process; returns the
    folder."""
    machine = content['environment']
    folder = folder_of(keep_out_of_results(out, machine), machine)
    folder.mkdir(parents=True, exist_ok=True)
    command = shlex.join(sys.argv[1:])
    record = json.dumps(dict(command=command, **content), indent=1, default=str)
    (folder / f'{name}.json').write_text(record + '\n')
    versions = f'torch {machine["torch"]}, {machine["dtype"]}, commit {machine["commit"]}'
    head = f'{machine["device"]}; {versions}, {machine["date"]}\n\n'
    head += f'`python tools/{tool} {command}`\n\n'
    (folder / f'{name}.md').write_text(head + compact(text) + '\n')
    return folder


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits and no exponent; '-' for None."""
    if value is None:
        return '-'
    if value == 0:
        return '0'
    decimals = max(0, digits - 1 - int(torch.tensor(abs(value)).log10().floor()))
    return f'{value:,.{decimals}f}'
