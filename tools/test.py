#!/usr/bin/env python
"""Evaluate a checkpoint: mmdet3d's own tools/test.py with all its flags."""

from stratified3d.host import run_host_tool

if __name__ == '__main__':
    run_host_tool('test.py')
