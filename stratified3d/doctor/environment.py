"""What is installed, which attention backend runs where, and whether results are right."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform

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
    """Print the versions of what the package needs."""
    print(f'stratified3d {__version__}, Python {platform.python_version()}, {platform.platform()}')
    for name in _PACKAGES:
        try:
            print(f'  {name:<16} {importlib.metadata.version(name)}')
        except importlib.metadata.PackageNotFoundError:
            print(f'  {name:<16} -')


def show_devices() -> list[str]:
    """Print the devices that torch finds, and return their names."""
    print('devices')
    threads = torch.get_num_threads()
    print(f'  cpu              {os.cpu_count()} cores, torch uses {threads} threads')

    devices = ['cpu']
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        print(
            f'  cuda:{i:<11} {properties.name}, {properties.total_memory / 2**30:.0f} GiB, '
            f'sm_{properties.major}{properties.minor}'
        )
        devices.append(f'cuda:{i}')
    if len(devices) == 1:
        cuda = torch.version.cuda
        reason = f'torch built for CUDA {cuda}' if cuda else 'this torch is the CPU build'
        print(f'  cuda             none ({reason})')
    return devices


def show_backends(devices: list[str]) -> None:
    """Print which attention backend runs on each device, and why the others do not."""
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
            others = []
            for name in BACKENDS:
                if name != chosen:
                    reason = ops.unsupported_reason(name, q) or 'runs too, slower'
                    others.append(f'{name}: {reason}')
            print(f'  {device:<7} {str(dtype)[6:]:<9} {chosen} ({"; ".join(others)})')


def check_imports() -> list[str]:
    """Import what the package needs, and return what fails."""
    failed = []
    for name in _IMPORTS:
        try:
            importlib.import_module(name)
        except Exception as error:  # imports fail in any way
            failed.append(f'import {name}: {type(error).__name__}: {error}')
    return failed


def check_results(device: str) -> list[str]:
    """Compare attention and sparse convolution with slow and simple computations of the same.

    Returns:
        What differs.
    """
    coords = random_coords((300, 200), (4, 24, 24)).to(device)
    failed = []
    error = _attention_error(coords)
    if not error < 1e-4:
        failed.append(f'{device}: attention differs from its equation by {error:.1e}')
    error = _convolution_error(coords)
    if not error < 2e-3:  # tensor cores may round to TF32
        failed.append(f'{device}: sparse convolution differs from the dense one by {error:.1e}')
    return failed


def _attention_error(coords: torch.Tensor) -> float:
    plan = ops.plan_windows(coords, (4, 6, 6), batch_size=2)
    device = coords.device
    q, k, v = torch.randn(3, 500, 2, 16, device=device).unbind(0)
    strata_k, strata_v = torch.randn(2, 2, 8, 2, 16, device=device).unbind(0)
    tensors = (q, k, v, plan, strata_k, strata_v)

    expected = ops.stratified_attention(*tensors, backend='reference')
    return relative_error(ops.stratified_attention(*tensors), expected)


def _convolution_error(coords: torch.Tensor) -> float:
    from stratified3d.layers.sparse_conv import SparseConv, SparseConvTensor, dense_bev

    feats = torch.randn(500, 8, device=coords.device)
    voxels = SparseConvTensor(feats, coords, [4, 24, 24], 2)
    layer = SparseConv(8, 8, 3, key='a').to(coords.device)

    volume = dense_bev(voxels).unflatten(1, (4, 8)).transpose(1, 2)  # [B, C, Z, Y, X]
    weight = layer.conv.weight.permute(0, 4, 1, 2, 3)
    dense = torch.nn.functional.conv3d(volume, weight, layer.conv.bias, padding=1)

    b, z, y, x = coords.long().unbind(1)
    return relative_error(layer(voxels).features, dense[b, :, z, y, x])
