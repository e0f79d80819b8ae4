"""The attention methods that are compared: our backends, and every baseline in all its variants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.default_config import HEADS, STRATA, WIDTH
from projects.attention_zoo import OTHER_FUNCTION, SAME_FUNCTION
from projects.attention_zoo.equations import equation
from projects.attention_zoo.mixer import Baseline, Configurable
from stratified3d.layers.attention import MixerContext, StratifiedAttention
from stratified3d.layers.window_grid import WindowGrid, build_window_grid
from stratified3d.ops import unsupported_reason
from stratified3d.ops.stratified_attention import BACKENDS
from stratified3d.testing import TOLERANCES, random_coords, relative_error


class Method(NamedTuple):
    """An attention in one variant.

    group: 'ours', or whether a baseline computes the 'same' or an 'other' function; settings: of a
    baseline; default: whether these are the defaults of its authors; mixer: module on the device.
    """

    name: str
    group: str
    settings: dict[str, Any]
    default: bool
    mixer: StratifiedAttention | Baseline

    def reason(self, q: Tensor) -> str | None:
        """Why it does not support such queries, or None."""
        if isinstance(self.mixer, Configurable):
            return self.mixer.unsupported_reason(q)
        backend = self.mixer.backend
        assert isinstance(backend, str)  # `methods` gives every method of ours a name
        return unsupported_reason(backend, q)

    def attend(self, inputs: Sequence[Tensor], grid: WindowGrid) -> Tensor:
        """Attention over the windows of grid [N, H, D].

        Args:
            inputs: q, k, v, strata_k, strata_v, strata_bias; those that compute another function
                take q, k, v.
        """
        q, k, v, *tokens = inputs
        if isinstance(self.mixer, Baseline):
            return self.mixer.attend(q, k, v, grid)
        return self.mixer.attend(q, k, v, grid, *tokens)


def methods(
    device: torch.device,
    dtype: torch.dtype,
    window_shape: tuple[int, int, int],
    only: Sequence[str] = (),
    tuned: bool = True,
) -> list[Method]:
    """All methods, or those whose names are given.

    Args:
        dtype: of the parameters of baselines that have some.
        window_shape: (z, y, x) that their tables are made for.
        only: names of methods; empty for all.
        tuned: all variants of a baseline, or its defaults alone.
    Raises:
        ValueError: a name in `only` is unknown.
    """
    context = MixerContext(HEADS * WIDTH, HEADS, window_shape=window_shape)
    found: list[Method] = []
    for backend in BACKENDS:
        if backend != 'reference':
            mixer = StratifiedAttention(context, num_strata=STRATA, backend=backend)
            found.append(Method(f'stratified3d {backend}', 'ours', {}, True, mixer))
    found += _baselines('same', SAME_FUNCTION, context, tuned)
    found += _baselines('other', OTHER_FUNCTION, context, tuned)

    names = list(dict.fromkeys(method.name for method in found))
    for name in only:
        if name not in names:
            raise ValueError(f'there is no method {name!r}; there are {", ".join(names)}')
    chosen = [method for method in found if not only or method.name in only]
    return [method._replace(mixer=method.mixer.to(device, dtype)) for method in chosen]


def _baselines(
    group: str, kinds: Sequence[type[Any]], context: MixerContext, tuned: bool
) -> Iterator[Method]:
    """Each kind with its defaults, then with its variants."""
    common = dict(num_strata=STRATA) if group == 'same' else {}
    for kind in kinds:
        variants = kind.variants if tuned else ()
        for settings in ({}, *variants):
            torch.manual_seed(0)
            mixer = kind(context._replace(block=kind.own_block), **common, **settings)
            yield Method(kind.__name__, group, mixer.settings, not settings, mixer)


def make_inputs(
    grid: WindowGrid, device: torch.device, dtype: torch.dtype, gradients: bool = True
) -> list[Tensor]:
    """Random inputs, the same for every method.

    Returns:
        q, k, v [N, H, D], strata_k, strata_v [B, M, H, D] in dtype, and strata_bias [B, M, H] in
        fp32.
    """
    generator = torch.Generator().manual_seed(0)
    rows = (len(grid.coords), HEADS, WIDTH)
    tokens = (len(grid.plan.batch_offsets) - 1, STRATA, HEADS, WIDTH)

    inputs = []
    for shape in (rows, rows, rows, tokens, tokens):
        inputs.append(torch.randn(shape, generator=generator).to(device, dtype))
    bias = torch.randn(tokens[:3], generator=generator).to(device) - 4
    return [x.requires_grad_(gradients) for x in (*inputs, bias)]


def check(method: Method, device: torch.device, dtype: torch.dtype, gradients: bool) -> str | None:
    """Compare a method with its equation in fp32 on a few voxels.

    Args:
        gradients: whether the gradient of every input is compared too.
    Returns:
        What is wrong, or None.
    """
    grid = _small_grid(method, device)
    inputs = make_inputs(grid, device, dtype, gradients)
    if method.group == 'other':
        inputs = inputs[:3]

    mixer = method.mixer.to(dtype)
    results = _with_gradients(method.attend(inputs, grid), inputs)

    mixer.to(torch.float32)
    inputs = [x.detach().float().requires_grad_(gradients) for x in inputs]
    q, k, v, *tokens = inputs
    expected = _with_gradients(equation(mixer, q, k, v, grid, *tokens), inputs)
    mixer.to(dtype)

    names = ('output', 'q', 'k', 'v', 'strata_k', 'strata_v', 'strata_bias')
    for name, value, wanted in zip(names, results, expected):
        error = relative_error(value, wanted)
        if not error <= 2 * TOLERANCES[dtype]:  # NaN too
            what = 'output' if name == 'output' else f'gradient of {name}'
            return f'{what} is off by {error:.1e}'
    return None


def _small_grid(method: Method, device: torch.device) -> WindowGrid:
    """Three samples, one of them empty, in windows of the method's own shape if it has one."""
    shape = (8, 16, 16)
    coords = random_coords((90, 0, 60), shape).to(device)
    return build_window_grid(
        coords,
        coords[:, [3, 2, 1]].float() / 4,
        getattr(method.mixer, 'window_shape', None) or (32, 12, 12),
        (0, 0, 0),
        batch_size=3,
        spatial_shape=shape,
        head_dim=WIDTH,
    )


def _with_gradients(out: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """out, and the gradients of a weighted sum of it where the inputs require them."""
    if not inputs[0].requires_grad:
        return [out]
    weight = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape)
    return [out, *torch.autograd.grad(out, inputs, weight.to(out.dtype))]
