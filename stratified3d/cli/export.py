"""Compile a detector, from points to boxes, into one file that runs without OpenMMLab."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratified3d.cli import short_name
from stratified3d.commands import command_parser

if TYPE_CHECKING:
    import numpy as np

EXAMPLES = """examples:
  {prog} stratified3d::quickstart/any_sensor.py stratified3d::quickstart/any-sensor.safetensors \\
    detector.pt2
  {prog} CONFIG CHECKPOINT detector.pt2 --device cuda
  {prog} CONFIG CHECKPOINT detector.pt2 --capacity 40000 --overflow drop
  {prog} CONFIG CHECKPOINT detector.pt2 --device cuda --capacity 20000 --points 60000
  {prog} CONFIG CHECKPOINT detector.pt2 --bev-dtype fp32 --check 20
  {prog} CONFIG CHECKPOINT detector.pt2 --bev-dtype fp32 --check 20 --check-folder sweeps/

It takes minutes. The file runs with the same version of torch, on the kind of device and processor
that it was compiled on:
  boxes, scores, names = stratified3d.deploy.load('detector.pt2')(points)
docs/deploy.md has the rest: C++, ROS 2, ONNX.
"""


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = command_parser(prog, __doc__, EXAMPLES)
    parser.add_argument(
        'config', help='a path, or a name such as stratified3d::quickstart/any_sensor.py'
    )
    parser.add_argument('checkpoint', help='a .pth or .safetensors file, or such a name')
    parser.add_argument('out', type=Path, help='the .pt2 file')
    parser.add_argument('--device', help='cpu or cuda; default: the GPU where there is one')
    parser.add_argument(
        '--bev-dtype',
        default='auto',
        choices=('fp32', 'bf16', 'auto'),
        help='of the convolutions on the BEV feature map (default: as the config says)',
    )
    parser.add_argument('--capacity', type=int, help='largest number of voxels (default: any)')
    parser.add_argument(
        '--overflow',
        default='error',
        choices=('error', 'drop'),
        help='a frame with more voxels is an error, or its farthest voxels are dropped',
    )
    parser.add_argument(
        '--points',
        type=int,
        help='largest number of points in range: with it and --capacity all shapes are static; for '
        'a GPU only',
    )
    parser.add_argument(
        '--check',
        type=int,
        metavar='N',
        help='afterwards compare the boxes of N frames, from no points to all, with the '
        "model's; needs --bev-dtype fp32, and a box that differs without a reason is an error",
    )
    parser.add_argument(
        '--check-folder', type=Path, help='of point files for --check (default: simulated frames)'
    )
    return parser


def main(arguments: list[str], prog: str) -> int:
    args = make_parser(prog).parse_args(arguments)
    from stratified3d.apis import init_detector
    from stratified3d.deploy.export import export_detector

    try:
        files = _files_to_check(args)
        model = init_detector(args.config, args.checkpoint, args.device)
        info = export_detector(
            model,
            args.out,
            bev_dtype=args.bev_dtype,
            capacity=args.capacity,
            overflow=args.overflow,
            num_points=args.points,
        )
        print(
            f'{args.out}: {len(info["classes"])} classes, {info["device"]}, {info["bev_dtype"]}, '
            f'torch {info["versions"]["torch"]}'
        )
        is_equal = args.check is None or _check(model, args.out, args.check, files)
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f'{short_name(prog)}: {error}')
    return 0 if is_equal else 1


def frames_to_check(count: int, files: list[Path] | None = None) -> Iterator[np.ndarray]:
    """Yield points [P, 4 or 5] of frames from none of their points to all, see `vary_size`.

    Args:
        count: of frames.
        files: of points, from which as many are taken at equal steps; None simulates frames of
            sensors of all kinds.
    """
    from stratified3d.datasets.io.point_files import read_points
    from stratified3d.deploy.compare import vary_size
    from stratified3d.simulation import simulate_frame

    for i in range(count):
        if files is None:
            points = simulate_frame(i, sensor='mixed')['points']
        else:
            points = read_points(files[i * len(files) // count])
        yield vary_size(points, i, count)


def _files_to_check(args: argparse.Namespace) -> list[Path] | None:
    """Refuse settings of --check before the work; return the files of its frames."""
    if args.check is None:
        if args.check_folder is not None:
            raise ValueError('--check-folder has no effect without --check')
        return None
    if args.check < 1:
        raise ValueError(f'--check is a number of frames and at least 1, not {args.check}')
    if args.bev_dtype != 'fp32':
        raise ValueError('--check compares boxes in fp32: add --bev-dtype fp32')
    if args.check_folder is None:
        return None
    from stratified3d.datasets.custom.infos import list_frames

    return list(list_frames(args.check_folder).values())


def _check(model: Any, package: Path, count: int, files: list[Path] | None) -> bool:
    """Print how far the package's boxes are from the model's; whether none lacks a reason.

    Frames that the package has no room for are left out: the model has no capacity.
    """
    from stratified3d.apis import detect
    from stratified3d.deploy import load
    from stratified3d.deploy.compare import compare_frames, render

    model.bev_dtype = 'fp32'
    detector = load(package)
    frames = (points for points in frames_to_check(count, files) if detector.has_room(points))
    differences = list(compare_frames(detector, model, detect, frames))
    left_out = count - len(differences)
    if left_out:
        print(f'{left_out} of {count} frames are over --capacity or --points and left out')
    print(render(differences))
    return bool(differences) and not any(d.num_unexplained for d in differences)
