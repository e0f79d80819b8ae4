"""Prepare a nuScenes-format dataset, wherever it lies on disk: its info files and its ground-truth
database."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from stratified3d.cli import short_name
from stratified3d.cli.convert import waymo
from stratified3d.commands import command_parser
from stratified3d.resumable import describe_error

EXAMPLES = """examples:
  {prog} data/simulated
  {prog} /datasets/nuscenes --version v1.0-trainval --workers 8
  {prog} /datasets/nuscenes --version v1.0-test
  {prog} /datasets/nuscenes --version v1.0-trainval --out-dir data/nuscenes    a read-only dataset
  {prog} data/simulated --no-database      without ground-truth sampling
  {prog} data/mine --version v1.0-mine --splits splits.json    scenes of your own
  {prog} nuscenes --root-path data/nuscenes --out-dir data/nuscenes --extra-tag nuscenes
  {prog} waymo --root-path data/waymo_v2 --out-dir data/waymo --extra-tag waymo

The last two are mmdet3d's form. Interrupted, it resumes when the same command is rerun. What is
finished is kept; delete a file to have it written again.
"""


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = command_parser(prog, __doc__, EXAMPLES)
    parser.add_argument(
        'root',
        nargs='?',
        help="folder that contains v1.0-*/, samples/ and sweeps/; in mmdet3d's form nuscenes or "
        'waymo',
    )
    parser.add_argument(
        '--version',
        help='v1.0-mini, v1.0-trainval, v1.0-test, or one of your own with --splits (default: '
        "v1.0-mini; in mmdet3d's form v1.0: trainval and, where it is there, test)",
    )
    parser.add_argument(
        '--splits',
        type=Path,
        metavar='FILE',
        help='scenes of your own: a file {"train": ["scene-a", ...], "val": [...]}',
    )
    parser.add_argument(
        '--val-share',
        type=float,
        metavar='SHARE',
        help='scenes of your own: this share of them, the last by name, is for validation',
    )
    parser.add_argument(
        '--max-sweeps', type=int, default=10, help='sweeps listed per keyframe (default: 10)'
    )
    parser.add_argument(
        '--sweeps',
        type=int,
        default=9,
        help='sweeps added to a keyframe in the database, as in the config (default: 9)',
    )
    parser.add_argument('--no-database', action='store_true', help='write the info files only')
    parser.add_argument(
        '--workers', type=int, default=1, help='processes that cut the database (default: 1)'
    )
    parser.add_argument(
        '--out-dir',
        type=Path,
        help='write there, beside links to the dataset, and train with it as the data root '
        '(default: the folder of the dataset)',
    )
    parser.add_argument('--root-path', help="mmdet3d's form: the folder of the dataset")
    parser.add_argument(
        '--extra-tag', choices=('nuscenes', 'waymo'), help="mmdet3d's form: how files are named"
    )
    return parser


def parse_args(arguments: list[str], prog: str) -> argparse.Namespace:
    """Read the command line; of mmdet3d's form, `dataset` is what it names."""
    parser = make_parser(prog)
    args = parser.parse_args(arguments)
    args.dataset = None
    if args.root_path is not None:
        args.dataset, args.root = args.root or 'nuscenes', args.root_path
        if args.dataset not in ('nuscenes', 'waymo'):
            parser.error(
                f"--root-path belongs to mmdet3d's form, which names nuscenes or waymo, not "
                f"'{args.dataset}'"
            )
        if args.extra_tag not in (None, args.dataset):
            parser.error(
                f'the files of {args.dataset} are named {args.dataset}_*, as configs expect'
            )
        if args.dataset == 'waymo' and args.out_dir is None:
            parser.error('waymo needs --out-dir')
    elif args.root is None:
        parser.error('name the folder of the dataset')
    return args


def main(arguments: list[str], prog: str) -> int:
    args = parse_args(arguments, prog)
    if args.dataset == 'waymo':
        return waymo.main([args.root, str(args.out_dir), '--workers', str(args.workers)], prog)
    try:
        prepare(args)
    except (OSError, ValueError) as error:
        sys.exit(f'{short_name(prog)}: {describe_error(error)}')
    return 0


def prepare(args: argparse.Namespace) -> None:
    """Write what is missing of each version, and say what was prepared."""
    from stratified3d.datasets.nuscenes.database import create_database
    from stratified3d.datasets.nuscenes.folders import link_dataset, list_versions, read_scenes
    from stratified3d.datasets.nuscenes.infos import create_infos
    from stratified3d.datasets.nuscenes.splits import OFFICIAL, choose_splits

    root = Path(args.root) if args.out_dir is None else link_dataset(args.root, args.out_dir)
    versions = choose_versions(args, list_versions(root))
    for version in versions:
        scenes = read_scenes(root, version)
        splits = choose_splits(list(scenes), version, args.splits, args.val_share)
        paths = create_infos(root, version, args.max_sweeps, splits)
        chosen = OFFICIAL[version] if splits is None else splits
        if not args.no_database and 'train' in chosen:
            paths.append(create_database(root, args.sweeps, args.workers))
        print(*paths, sep='\n')
        for split, names in chosen.items():
            own = [name for name in names if name in scenes]
            frames = sum(scenes[name] for name in own)
            print(f'{version}, {split}: {len(own)} scenes, {frames} keyframes')
        unused = scenes.keys() - {name for names in chosen.values() for name in names}
        if unused:
            print(f'{version}: {len(unused)} scenes are in no split')
    others = [name for name in list_versions(root) if name not in versions]
    if others:
        print(f'not prepared, but there as well: {", ".join(others)} (--version {others[0]})')


def choose_versions(args: argparse.Namespace, there: list[str]) -> list[str]:
    """Versions to prepare: the one that is named, or v1.0-mini, or what mmdet3d's v1.0 means."""
    version = args.version
    if version is None:
        version = 'v1.0' if args.dataset and 'v1.0-trainval' in there else 'v1.0-mini'
    if version != 'v1.0':
        return [version]
    return ['v1.0-trainval', *(['v1.0-test'] if 'v1.0-test' in there else [])]
