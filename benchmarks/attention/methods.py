"""Who competes: our backends and every baseline of the zoo in each of its settings, checked before
they are timed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from projects.attention_zoo import OTHER, SAME
from projects.attention_zoo.equations import equation
from projects.attention_zoo.mixer import Tunable
from stratified3d.layers.attention import StratifiedAttention, WindowGrid, build_window_grid
from stratified3d.ops import unsupported_reason
from stratified3d.ops.stratified_attention import BACKENDS
from stratified3d.testing import TOLERANCES, random_coords, relative_error

HEADS, WIDTH, STRATA = 4, 32, 64


class Method(NamedTuple):
    """name; group: 'ours', 'same' or 'other' function; settings: of a baseline; default: whether these
    are its authors'; mixer: module on the device, in fp32."""

    name: str
    group: str
    settings: dict
    default: bool
    mixer: torch.nn.Module

    def reason(self, q: Tensor) -> str | None:
        """Why it cannot serve such queries, or None."""
        if isinstance(self.mixer, Tunable):
            return self.mixer.unsupported_reason(q)
        return unsupported_reason(self.mixer.backend, q)

    def attend(self, inputs: Sequence[Tensor], grid: WindowGrid) -> Tensor:
        """inputs: q, k, v, strata_k, strata_v, strata_bias; those that compute another function
        take q, k, v."""
        return self.mixer.attend(*inputs[:3], grid, *(inputs[3:] if self.group != 'other' else ()))


def methods(
    device: torch.device,
    dtype: torch.dtype,
    window_shape: Sequence[int],
    only: Sequence[str] = (),
    tuned: bool = True,
) -> list[Method]:
    """All of them, or those whose names are given.

    Args:
        dtype: of the parameters of baselines that have some.
        window_shape: (z, y, x) that their tables are made for.
        tuned: every setting of a baseline, or its authors' alone.
    Raises:
        ValueError: a name that is none.
    """
    found, channels = [], HEADS * WIDTH
    for backend in BACKENDS:
        if backend != 'reference':
            mixer = StratifiedAttention(channels, HEADS, STRATA, backend=backend)
            found.append(Method(f'stratified3d {backend}', 'ours', {}, True, mixer))
    for group, kinds in (('same', SAME), ('other', OTHER)):
        for kind in kinds:
            for settings in ({}, *kind.tried)[: None if tuned else 1]:
                more = (
                    dict(window_shape=window_shape) if group == 'other' else dict(num_strata=STRATA)
                )
                torch.manual_seed(0)
                mixer = kind(channels, HEADS, **more, **settings)
                found.append(Method(kind.__name__, group, mixer.settings, not settings, mixer))
    names = list(dict.fromkeys(c.name for c in found))
    unknown = [name for name in only if name not in names]
    if unknown:
        raise ValueError(f'there is no {unknown[0]!r} to benchmark; there are {", ".join(names)}')
    return [
        c._replace(mixer=c.mixer.to(device, dtype)) for c in found if not only or c.name in only
    ]


def make_inputs(
    grid: WindowGrid, device: torch.device, dtype: torch.dtype, gradients: bool = True
) -> list[Tensor]:
    """q, k, v [N, H, D], strata_k, strata_v [B, M, H, D] and strata_bias [B, M, H] fp32, the same
    for everyone."""
    generator = torch.Generator().manual_seed(0)
    rows, batch = (
        (len(grid.coords), HEADS, WIDTH),
        (len(grid.plan.batch_offsets) - 1, STRATA, HEADS, WIDTH),
    )
    tensors = [
        torch.randn(shape, generator=generator).to(device, dtype)
        for shape in (rows,) * 3 + (batch,) * 2
    ]
    tensors.append(torch.randn(batch[:3], generator=generator).to(device) - 4)
    return [x.requires_grad_(gradients) for x in tensors]


def check(method: Method, device: torch.device, dtype: torch.dtype, gradients: bool) -> str | None:
    """What is wrong with it on a small cloud, against its equation in fp32 (output, and every
    gradient of its inputs), or None."""
    shape, window = (8, 16, 16), getattr(method.mixer, 'window_shape', None) or (32, 12, 12)
    coords = random_coords((90, 0, 60), shape).to(device)
    grid = build_window_grid(
        coords,
        coords[:, [3, 2, 1]].float() / 4,
        window,
        (0, 0, 0),
        batch_size=3,
        spatial_shape=shape,
        head_dim=WIDTH,
    )
    inputs = make_inputs(grid, device, dtype, gradients)
    given = inputs if method.group != 'other' else inputs[:3]
    results = []
    for wide in (False, True):
        x = [t.detach().float().requires_grad_(gradients) if wide else t for t in given]
        method.mixer.to(torch.float32 if wide else dtype)
        out = equation(method.mixer, *x[:3], grid, *x[3:]) if wide else method.attend(x, grid)
        weight = torch.linspace(-1, 1, out.numel(), device=device).view(out.shape).to(out.dtype)
        results.append([out, *(torch.autograd.grad(out, x, weight) if gradients else ())])
    method.mixer.to(dtype)
    names = ('output', 'q', 'k', 'v', 'strata_k', 'strata_v', 'strata_bias')
    for name, value, truth in zip(names, *results):
        error = relative_error(value, truth)
        if not error <= 2 * TOLERANCES[dtype]:
            return f'{"" if name == "output" else "gradient of "}{name} is off by {error:.1e}'
    return None
