"""`python -m stratified3d.doctor`: what is installed, which attention backend runs, whether sums
are right."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import sys

import torch

from stratified3d import __version__, ops
from stratified3d.ops.stratified_attention import BACKENDS
from stratified3d.testing import random_coords, relative_error

_PACKAGES = (
    'torch',
    'triton',
    'mmengine',
    'mmcv',
    'mmdet',
    'mmdet3d',
    'spconv',
    'spconv-cu126',
    'cumm',
    'numba',
    'numpy',
    'open3d',
    'nuscenes-devkit',
    'safetensors',
)
_IMPORTS = (
    'mmcv.ops',
    'mmdet3d.models',
    'spconv.pytorch',
    'numba',
    'open3d',
    'stratified3d.plugin',
)


def show_versions() -> None:
    print(f'stratified3d {__version__}, Python {platform.python_version()}, {platform.platform()}')
    for name in _PACKAGES:
        try:
            print(f'  {name:<16} {importlib.metadata.version(name)}')
        except importlib.metadata.PackageNotFoundError:
            print(f'  {name:<16} -')


def show_devices() -> list[str]:
    print(
        f'devices\n  cpu              {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads'
    )
    devices = ['cpu']
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        print(
            f'  cuda:{i:<11} {properties.name}, {properties.total_memory / 2**30:.0f} GiB, '
            f'sm_{properties.major}{properties.minor}'
        )
        devices.append(f'cuda:{i}')
    if len(devices) == 1:
        print(
            f'  cuda             none (torch built for CUDA {torch.version.cuda})'
            if torch.version.cuda
            else '  cuda             none (this torch is the CPU build)'
        )
    return devices


def show_backends(devices: list[str]) -> None:
    forced = os.environ.get('STRATIFIED3D_BACKEND')
    print('attention backends' + (f' (STRATIFIED3D_BACKEND={forced})' if forced else ''))
    for device in devices:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            q = torch.empty(1, 1, 32, dtype=dtype, device=device)
            try:
                chosen = ops.choose_backend(None, q)
            except ValueError as error:
                print(f'  {device} {dtype}: {error}')
                continue
            others = '; '.join(
                f'{name}: {ops.unsupported_reason(name, q) or "runs too, slower"}'
                for name in BACKENDS
                if name != chosen
            )
            print(f'  {device:<7} {str(dtype)[6:]:<9} {chosen} ({others})')


def check_imports() -> list[str]:
    failed = []
    for name in _IMPORTS:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever keeps a package from importing is what is asked for
            failed.append(f'import {name}: {type(error).__name__}: {error}')
    return failed


def check_sums(device: str) -> list[str]:
    """Attention against the equation and sparse against dense convolution, on a small cloud."""
    from stratified3d.layers.sparse_conv import SparseConv, SparseConvTensor, dense_bev

    failed = []
    coords = random_coords((300, 200), (4, 24, 24)).to(device)
    plan = ops.plan_windows(coords, (4, 6, 6), batch_size=2)
    q, k, v = torch.randn(3, 500, 2, 16, device=device).unbind(0)
    strata = torch.randn(2, 2, 8, 2, 16, device=device).unbind(0)
    truth = ops.stratified_attention(q, k, v, plan, *strata, backend='reference')
    error = relative_error(ops.stratified_attention(q, k, v, plan, *strata), truth)
    if not error < 1e-4:
        failed.append(f'{device}: attention differs from its equation by {error:.1e}')
    x = SparseConvTensor(torch.randn(500, 8, device=device), coords, [4, 24, 24], 2)
    conv = SparseConv(8, 8, 3, key='a').to(device)
    volume = dense_bev(x).unflatten(1, (4, 8)).transpose(1, 2)  # [B, C, Z, Y, X]
    dense = torch.nn.functional.conv3d(
        volume, conv.conv.weight.permute(0, 4, 1, 2, 3), conv.conv.bias, padding=1
    )
    b, z, y, xx = coords.long().unbind(1)
    error = relative_error(conv(x).features, dense[b, :, z, y, xx])
    if not error < 2e-3:  # tensor cores may round to TF32
        failed.append(f'{device}: sparse convolution differs from the dense one by {error:.1e}')
    return failed


def main() -> int:
    show_versions()
    devices = show_devices()
    show_backends(devices)
    failed = check_imports()
    if not failed:
        try:
            with torch.no_grad():
                failed = [f for device in devices for f in check_sums(device)]
        except ValueError as error:  # no backend can run
            failed = [str(error)]
    for line in failed:
        print(f'FAILED {line}')
    print(
        'something is wrong: bash tools/setup.sh --fresh builds the environment anew'
        if failed
        else 'all imports work, attention and sparse convolution compute right sums'
    )
    return bool(failed)


if __name__ == '__main__':
    sys.exit(main())
