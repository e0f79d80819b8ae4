"""How much a reader has to take in per line: AST leaves per code line, by folder, and functions
that are too long.

    python tests/density.py                      a table of all folders
    python tests/density.py stratified3d/ops     its functions, the densest first

Leaves are names, attributes, constants, calls, operators, comparisons and subscripts. Code lines
are lines that are neither blank nor a comment nor part of a docstring. Functions below 15 code
lines say little and are not counted.
"""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SHORTEST = 15
LEAVES = (
    ast.Name,
    ast.Attribute,
    ast.Constant,
    ast.Call,
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.Subscript,
)


class Function(NamedTuple):
    """path and name; line: where it starts; lines: its length without docstring; code_lines;
    density."""

    path: Path
    name: str
    line: int
    lines: int
    code_lines: int
    density: float


def lines_of(node: ast.stmt) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def docstring_lines(node: ast.AST) -> set[int]:
    """Lines of all docstrings inside a node."""
    lines: set[int] = set()
    for part in ast.walk(node):
        if not isinstance(part, (ast.FunctionDef, ast.ClassDef, ast.Module)):
            continue
        if ast.get_docstring(part, clean=False) is not None:
            lines.update(lines_of(part.body[0]))
    return lines


def count_leaves(node: ast.AST, ignored: set[int]) -> int:
    return sum(isinstance(part, LEAVES) and part.lineno not in ignored for part in ast.walk(node))


def measure(path: Path) -> Iterator[Function]:
    """Every function of a file, nested ones as part of the one around them."""
    text = path.read_text()
    source = text.splitlines()

    def visit(node: ast.AST, prefix: str) -> Iterator[Function]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                yield from visit(child, f'{prefix}{child.name}.')
            elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                ignored = docstring_lines(child)
                span = [n for n in lines_of(child) if n not in ignored]
                code = [
                    n
                    for n in span
                    if source[n - 1].strip() and not source[n - 1].strip().startswith('#')
                ]
                density = count_leaves(child, ignored) / max(len(code), 1)
                yield Function(
                    path, f'{prefix}{child.name}', child.lineno, len(span), len(code), density
                )

    return visit(ast.parse(text), '')


def tracked_files() -> list[Path]:
    """Python files of the package, the projects, the tools and the benchmarks, not of the tests."""
    command = ['git', 'ls-files', '-co', '--exclude-standard', '*.py']
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [ROOT / line for line in listing.stdout.splitlines()]
    return [path for path in paths if path.is_file() and ROOT / 'tests' not in path.parents]


def measure_folders() -> dict[str, list[Function]]:
    folders: dict[str, list[Function]] = defaultdict(list)
    for path in tracked_files():
        folder = path.parent.relative_to(ROOT).as_posix()
        folders[folder].extend(f for f in measure(path) if f.code_lines >= SHORTEST)
    return dict(folders)


def median_density(functions: list[Function]) -> float:
    return statistics.median(f.density for f in functions) if functions else 0.0


def main() -> None:
    if len(sys.argv) > 1:
        chosen = [
            path for path in tracked_files() if path.is_relative_to(Path(sys.argv[1]).resolve())
        ]
        functions = [f for path in chosen for f in measure(path) if f.code_lines >= SHORTEST]
        for f in sorted(functions, key=lambda f: -f.density):
            print(
                f'{f.density:5.1f} {f.lines:4} lines  {f.path.relative_to(ROOT)}:{f.line} {f.name}'
            )
        print(f'median {median_density(functions):.2f} of {len(functions)} functions')
        return
    folders = measure_folders()
    print(f'{"folder":<52}{"functions":>10}{"median":>8}{"longest":>9}')
    for folder, functions in sorted(folders.items()):
        if functions:
            longest = max(f.lines for f in functions)
            print(f'{folder:<52}{len(functions):>10}{median_density(functions):>8.2f}{longest:>9}')
    everything = [f for functions in folders.values() for f in functions]
    print(f'{"all":<52}{len(everything):>10}{median_density(everything):>8.2f}')


if __name__ == '__main__':
    main()
