"""3D rotary position embedding on real-valued coordinates in meters."""

from __future__ import annotations

import math
import os

import torch
import torch.nn.functional as F
from torch import Tensor

from stratified3d.ops.stratified_attention import kernels as triton


def rotary_angles(
    positions: Tensor, head_dim: int, *, min_wavelength: float = 1.0, max_wavelength: float = 256.0
) -> tuple[Tensor, Tensor]:
    """Cosine and sine tables of the rotation at every position.

    RoFormer (Su et al. 2021, section 3.2) carried to three axes: head_dim is split into three even
    parts, one an axis, whose channel pairs turn by 2 pi * coordinate / wavelength with wavelengths
    in geometric progression. Pairs that three even parts leave over are not rotated: their angle is
    zero. A product of two rotated vectors depends on the difference of their positions only.

    Args:
        positions: [..., 3] x, y, z in meters.
        head_dim: D.
        min_wavelength: of the fastest pair, meters; about twice the finest distance that matters.
        max_wavelength: of the slowest pair, meters; about twice the size of the scene.
    Returns:
        cos, sin: [..., D // 2] fp32 (fp64 for fp64 positions), one column a channel pair.
    Raises:
        ValueError: positions that do not end in 3, or wavelengths that are not 0 < min <= max.
    """
    if positions.shape[-1] != 3:
        raise ValueError(f'positions are [..., 3], not {tuple(positions.shape)}')
    if not 0 < min_wavelength <= max_wavelength:
        raise ValueError(f'wavelengths must satisfy 0 < {min_wavelength} <= {max_wavelength}')
    pairs = head_dim // 6
    positions = positions.to(torch.promote_types(positions.dtype, torch.float32))
    step = torch.arange(pairs, device=positions.device, dtype=positions.dtype) / max(pairs - 1, 1)
    frequency = 2 * math.pi / min_wavelength * (min_wavelength / max_wavelength) ** step  # [D // 6]
    angle = (positions.unsqueeze(-1) * frequency).flatten(-2)  # [..., 3 * (D // 6)]
    angle = F.pad(angle, (0, head_dim // 2 - angle.shape[-1]))  # [..., D // 2]
    return angle.cos(), angle.sin()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor, *, backend: str | None = None) -> Tensor:
    """Rotate channel pairs (2i, 2i + 1) of every head, in one pass over memory.

    Args:
        x: [..., H, D].
        cos, sin: [..., R] with 2 R <= D, from `rotary_angles`; shared by the heads, not
        differentiated.
        backend: of the attention that follows; None is that of STRATIFIED3D_BACKEND, else 'triton'.
            That one has a kernel for it where it runs; everyone else takes a product of complex
            numbers.
    Returns:
        [..., H, D] in x's dtype; the last D - 2 R channels are unchanged.
    Raises:
        ValueError: tables wider than D, or of other rows than x.
    """
    rotated = 2 * cos.shape[-1]
    if rotated > x.shape[-1]:
        raise ValueError(f'tables for {rotated} channels do not fit heads of width {x.shape[-1]}')
    if cos.shape[:-1] != x.shape[:-2] or sin.shape != cos.shape:
        raise ValueError(
            f'cos {tuple(cos.shape)} and sin {tuple(sin.shape)} must have the rows of x, '
            f'{tuple(x.shape[:-2])}'
        )
    if not rotated:
        return x
    backend = backend or os.environ.get('STRATIFIED3D_BACKEND') or 'triton'
    if backend == 'triton' and triton.unsupported_reason(x) is None:
        return triton.rotate(x, cos, sin)
    dtype = torch.promote_types(torch.promote_types(x.dtype, cos.dtype), torch.float32)
    angle = torch.complex(cos.to(dtype), sin.to(dtype)).detach().unsqueeze(-2)  # [..., 1, R]
    turned, rest = x[..., :rotated].to(dtype), x[..., rotated:]
    if turned.stride(-1) != 1 or any(
        n % 2 for n in (turned.storage_offset(), *turned.stride()[:-1])
    ):
        turned = turned.contiguous()  # its pairs do not lie where complex numbers may
    turned = (
        torch.view_as_real(torch.view_as_complex(turned.unflatten(-1, (-1, 2))) * angle)
        .flatten(-2)
        .to(x.dtype)
    )
    return turned if not rest.shape[-1] else torch.cat([turned, rest], -1)
