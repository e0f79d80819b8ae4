"""Compile a detector, from points to boxes, into one file that runs without OpenMMLab."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from stratified3d.cli import short_name
from stratified3d.commands import command_parser

EXAMPLES = """examples:
  {prog} stratified3d::quickstart/any_sensor.py stratified3d::quickstart/any-sensor.safetensors \\
    detector.pt2
  {prog} CONFIG CHECKPOINT detector.pt2 --device cuda
  {prog} CONFIG CHECKPOINT detector.pt2 --capacity 40000 --overflow drop

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
    return parser


def main(arguments: list[str], prog: str) -> int:
    args = make_parser(prog).parse_args(arguments)
    from stratified3d.apis import init_detector
    from stratified3d.deploy.export import export_detector

    try:
        model = init_detector(args.config, args.checkpoint, args.device)
        info = export_detector(
            model,
            args.out,
            bev_dtype=args.bev_dtype,
            capacity=args.capacity,
            overflow=args.overflow,
        )
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f'{short_name(prog)}: {error}')
    print(
        f'{args.out}: {len(info["classes"])} classes, {info["device"]}, {info["bev_dtype"]}, '
        f'torch {info["versions"]["torch"]}'
    )
    return 0
