#!/usr/bin/env python
"""Convert point files and a table of boxes: `stratified3d convert custom`, from the repository."""

import sys
from pathlib import Path

# the package of this repository, wherever the command was started
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stratified3d.cli import run_command

if __name__ == '__main__':
    sys.exit(run_command('convert custom', 'python tools/convert_custom.py'))
