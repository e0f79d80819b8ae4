#!/usr/bin/env python
"""Prepare a nuScenes-format data set for training: write its info files, wherever it lies on disk."""
from __future__ import annotations

import argparse
import sys

from stratified3d.datasets.nuscenes_infos import create_infos

EXAMPLES = """examples:
  python tools/create_data.py data/simulated
  python tools/create_data.py /datasets/nuscenes --version v1.0-trainval

Info files that are there already are kept; delete one to have it written again.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('root', help='folder that holds v1.0-*/, samples/ and sweeps/')
    parser.add_argument('--version', default='v1.0-mini', help='v1.0-mini, v1.0-trainval or v1.0-test (default: mini)')
    parser.add_argument('--max-sweeps', type=int, default=10, help='sweeps listed per keyframe (default: 10)')
    args = parser.parse_args()
    try:
        for path in create_infos(args.root, args.version, args.max_sweeps):
            print(path)
    except (OSError, ValueError) as error:
        sys.exit(f'create_data.py: {error}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
