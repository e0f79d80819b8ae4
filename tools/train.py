#!/usr/bin/env python
"""Train a detector: mmdet3d's own tools/train.py with all its flags (--resume, --cfg-options,
--launcher, --amp)."""

from stratified3d.host import run_host_tool

if __name__ == '__main__':
    run_host_tool('train.py')
