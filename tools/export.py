#!/usr/bin/env python
"""Compile a detector into one file: `stratified3d export`, from the repository."""

import sys
from pathlib import Path

# the package of this repository, wherever the command was started
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stratified3d.cli import run_command

if __name__ == '__main__':
    sys.exit(run_command('export', 'python tools/export.py'))
