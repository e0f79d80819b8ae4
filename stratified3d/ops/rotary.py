"""3D rotary position embedding on real-valued coordinates in meters."""

from __future__ import annotations

import math
import os

import torch
import torch.nn.functional as F
from torch import Tensor

from stratified3d.ops.checks import check_rotary_tables, check_wavelengths
from stratified3d.ops.stratified_attention import Backend, kernels


def rotary_angles(
    positions: Tensor, head_dim: int, *, min_wavelength: float = 1.0, max_wavelength: float = 256.0
) -> tuple[Tensor, Tensor]:
    """Cosine and sine tables of the rotation at every position.

    RoFormer (Su et al. 2021, section 3.2) extended to three axes. head_dim is split into three even
    parts, one per axis. The channel pairs of a part rotate by 2 pi * coordinate / wavelength, with
    wavelengths in geometric progression. Pairs that three even parts leave over are not rotated:
    their angle is zero. The dot product of two rotated vectors depends only on the difference of
    their positions.

    Args:
        positions: [..., 3] x, y, z in meters.
        head_dim: D.
        min_wavelength: of the fastest pair, meters; about twice the finest distance that matters.
        max_wavelength: of the slowest pair, meters; about twice the size of the scene.
    Returns:
        cos, sin: [..., D // 2] fp32 (fp64 for fp64 positions), one column per channel pair.
    Raises:
        ValueError: positions that do not end in 3, or wavelengths that are not 0 < min <= max.
    """
    check_wavelengths(positions, min_wavelength, max_wavelength)
    pairs = head_dim // 6
    positions = positions.to(torch.promote_types(positions.dtype, torch.float32))
    step = torch.arange(pairs, device=positions.device, dtype=positions.dtype) / max(pairs - 1, 1)
    frequency = 2 * math.pi / min_wavelength * (min_wavelength / max_wavelength) ** step  # [D // 6]
    angle = (positions.unsqueeze(-1) * frequency).flatten(-2)  # [..., 3 * (D // 6)]
    angle = F.pad(angle, (0, head_dim // 2 - angle.shape[-1]))  # [..., D // 2]
    return angle.cos(), angle.sin()


def apply_rotary(
    x: Tensor, cos: Tensor, sin: Tensor, *, backend: str | Backend | None = None
) -> Tensor:
    """Rotate channel pairs (2i, 2i + 1) of every head, in one pass over memory.

    Args:
        x: [..., H, D].
        cos, sin: [..., R] with 2 R <= D, from `rotary_angles`; shared by the heads, not
            differentiated.
        backend: of the attention that follows; None is that of STRATIFIED3D_BACKEND, else 'triton'.
            That one has a kernel for it where it runs; all others take a product of complex
            numbers.
    Returns:
        [..., H, D] in x's dtype; the last D - 2 R channels are unchanged.
    Raises:
        ValueError: tables wider than D, or of other rows than x.
    """
    check_rotary_tables(x, cos, sin)
    if not cos.shape[-1]:
        return x
    backend = backend or os.environ.get('STRATIFIED3D_BACKEND') or 'triton'
    if backend == 'triton' and kernels.unsupported_reason(x) is None:
        return kernels.rotate(x, cos, sin)
    if torch.compiler.is_compiling():
        return _rotate_pairs(x, cos, sin)  # compilers know no complex numbers
    return _rotate(x, cos, sin)


def _rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`apply_rotary` in real numbers."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, cos.dtype), torch.float32)
    cos, sin = (table.detach().to(dtype).unsqueeze(-2) for table in (cos, sin))  # [..., 1, R]
    num_rotated = 2 * cos.shape[-1]
    even, odd = x[..., :num_rotated].to(dtype).unflatten(-1, (-1, 2)).unbind(-1)
    pairs = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1)  # [..., H, R, 2]
    return torch.cat([pairs.flatten(-2).to(x.dtype), x[..., num_rotated:]], -1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`apply_rotary` as a product of complex numbers, one per channel pair."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, cos.dtype), torch.float32)
    angle = torch.complex(cos.to(dtype), sin.to(dtype)).detach().unsqueeze(-2)  # [..., 1, R]
    num_rotated = 2 * cos.shape[-1]
    rotated = x[..., :num_rotated].to(dtype)
    rest = x[..., num_rotated:]

    # pairs can be viewed as complex numbers only where they lie at even places of the memory
    places = (rotated.storage_offset(), *rotated.stride()[:-1])
    if rotated.stride(-1) != 1 or any(place % 2 for place in places):
        rotated = rotated.contiguous()
    pairs = torch.view_as_complex(rotated.unflatten(-1, (-1, 2)))  # [..., H, R]
    rotated = torch.view_as_real(pairs * angle).flatten(-2).to(x.dtype)
    return torch.cat([rotated, rest], -1) if rest.shape[-1] else rotated
