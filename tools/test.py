#!/usr/bin/env python
"""Evaluate a checkpoint: mmdet3d's own tools/test.py with all its options."""

import sys
from pathlib import Path

# configs may import projects.<name>, wherever the command was started
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stratified3d.host import run_host_tool

if __name__ == '__main__':
    run_host_tool('test.py')
