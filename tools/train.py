#!/usr/bin/env python
"""Train a detector: mmdet3d's own tools/train.py with all its options (--resume, --cfg-options,
--launcher, --amp)."""

import sys
from pathlib import Path

# configs may import projects.<name>, wherever the command was started
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stratified3d.host import run_host_tool

if __name__ == '__main__':
    run_host_tool('train.py')
