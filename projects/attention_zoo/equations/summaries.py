"""Equations of the mixers that read summaries."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from projects.attention_zoo.equations.dense import (
    attend,
    average,
    means,
    regions,
    rotate_means,
    same,
    sample_rows,
    sorts_along_y,
    walk_snake,
    windows,
)
from projects.attention_zoo.summaries.concentrated import ConcentratedLinearAttention
from projects.attention_zoo.summaries.factorized import FactorizedAttention
from projects.attention_zoo.summaries.latents import LatentAttention
from projects.attention_zoo.summaries.linear import LinearWindowAttention, PerformerAttention
from projects.attention_zoo.summaries.proxies import ProxyAttention
from projects.attention_zoo.summaries.reduced import LinformerAttention, SpatialReductionAttention
from projects.attention_zoo.summaries.scan import ScanAttention
from stratified3d.layers.window_grid import WindowGrid


def _reduced(
    baseline: SpatialReductionAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid
) -> Tensor:
    index = grid.coords[:, 1:] // baseline.reduction
    cells, _, mean = means(torch.cat([grid.coords[:, :1], index], 1), q.dtype)
    keys = baseline.reduce_k(mean @ k.flatten(1)).view(-1, *k.shape[1:])
    values = baseline.reduce_v(mean @ v.flatten(1)).view(-1, *v.shape[1:])
    keys = rotate_means(baseline, keys, mean, grid)
    q = baseline.rotate(q, grid.rotary)
    return attend(q, keys, values, grid.coords[:, :1] == cells[:, 0])


def _linformer(
    baseline: LinformerAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid
) -> Tensor:
    samples = sample_rows(grid)
    keys, values = [], []  # [rank, H, D] of every sample
    for rows in samples:
        keys.append(_mix_rows(baseline, k[rows]))
        values.append(_mix_rows(baseline, v[rows]))
    owner = torch.arange(len(samples), device=q.device).repeat_interleave(baseline.rank)
    return attend(q, torch.cat(keys), torch.cat(values), grid.coords[:, :1] == owner)


def _mix_rows(baseline: LinformerAttention, x: Tensor) -> Tensor:
    """Project the rows of one sample [n, H, D] to [rank, H, D]."""
    length = baseline.length
    bounds = torch.arange(length + 1) * len(x) // length
    filled = (bounds.diff() > 0).nonzero().squeeze(1).tolist()
    means = [x[bounds[c] : bounds[c + 1]].mean(0) for c in filled]
    columns = baseline.projection[:, filled]
    return torch.einsum('rc,chd->rhd', columns, torch.stack(means) if means else x[:0])


def _linear(
    baseline: LinearWindowAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid
) -> Tensor:
    weights = torch.einsum('ihd,jhd->hij', q.relu(), k.relu())
    return average(weights.masked_fill(~same(windows(grid)), 0), v)


def _performer(
    baseline: PerformerAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid
) -> Tensor:
    weights = torch.einsum(
        'ihf,jhf->hij', _random_features(baseline, q), _random_features(baseline, k)
    )
    return average(weights.masked_fill(~same(grid.coords[:, 0]), 0), v)


def _random_features(baseline: PerformerAttention, x: Tensor) -> Tensor:
    """Return exp(w x - |x|^2 / 2) of x [N, H, D], scaled for a softmax: [N, H, F]."""
    x = x * x.shape[-1] ** -0.25
    projected = torch.einsum('nhd,fd->nhf', x, baseline.features.to(x.dtype))
    return (projected - x.square().sum(-1, keepdim=True) / 2).exp()


def _proxies(baseline: ProxyAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
    region, _, mean = means(regions(grid, baseline.regions), q.dtype)
    queries, keys, values = (torch.einsum('kn,nhd->khd', mean, x) for x in (q, k, v))
    queries, keys = (rotate_means(baseline, x, mean, grid) for x in (queries, keys))
    values = attend(queries, keys, values, same(region[:, 0]))

    q, k = (baseline.rotate(x, grid.rotary) for x in (q, k))
    far = attend(q, keys, values, grid.coords[:, :1] == region[:, 0])
    return far + attend(q, k, v, same(windows(grid))) if baseline.local else far


def _latents(
    baseline: LatentAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid
) -> Tensor:
    region, member, mean = means(regions(grid, baseline.regions), q.dtype)
    count = len(baseline.latents)
    owner = torch.arange(len(region), device=q.device).repeat_interleave(count)  # [R m]
    latents = baseline.latents.repeat(len(region), 1, 1)
    latents = attend(latents, k, v, owner[:, None] == member)

    latents = latents + _exchange(baseline, latents, mean[owner], region[owner, 0], grid)

    far_k, far_v = baseline.write(latents.flatten(1)).view(len(owner), 2, *q.shape[1:]).unbind(1)
    far = attend(q, far_k, far_v, member[:, None] == owner)
    q, k = (baseline.rotate(x, grid.rotary) for x in (q, k))
    return far + attend(q, k, v, same(windows(grid)))


def _exchange(
    baseline: LatentAttention, latents: Tensor, mean: Tensor, sample: Tensor, grid: WindowGrid
) -> Tensor:
    """Let the latents [R m, H, D] attend to those of their sample."""
    parts = baseline.exchange(latents.flatten(1)).view(len(latents), 3, *latents.shape[1:])
    q, k, v = parts.unbind(1)
    q, k = (rotate_means(baseline, x, mean, grid) for x in (q, k))
    return attend(q, k, v, same(sample))


def _concentrated(
    baseline: ConcentratedLinearAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid
) -> Tensor:
    if baseline.block % 2 == 0:
        q, k = (baseline.rotate(x, grid.rotary) for x in (q, k))
        return attend(q, k, v, same(windows(grid)))

    weights = torch.einsum('ihd,jhd->hij', q.relu(), k.relu())
    out = average(weights.masked_fill(~same(grid.coords[:, 0]), 0), v)
    return out + torch.einsum('ijhd,jhd->ihd', _kernel_weights(baseline, grid), out)


def _kernel_weights(baseline: ConcentratedLinearAttention, grid: WindowGrid) -> Tensor:
    """Return the weight of row j in the convolution at row i, [N, N, H, D]."""
    radius = baseline.kernel // 2
    offset = grid.coords[None, :, 1:] - grid.coords[:, None, 1:]  # [i, j, 3]
    near = (offset[..., 0] == 0) & (offset[..., 1:].abs() <= radius).all(-1)
    near = near & same(grid.coords[:, 0])
    place = (offset[..., 1] + radius) * baseline.kernel + offset[..., 2] + radius
    return baseline.weights[place.masked_fill(~near, 0).long()] * near[..., None, None]


def _factorized(
    baseline: FactorizedAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid
) -> Tensor:
    outs = []
    for i, (query, key, value) in enumerate(zip(*(x.tensor_split(3, 1) for x in (q, k, v)))):
        distinct, _, mean = means(_factor(baseline, grid)[i], q.dtype)
        keys, values = (torch.einsum('kn,nhd->khd', mean, x) for x in (key, value))
        if i == 0:
            keys = rotate_means(baseline, keys, mean, grid)
            query = baseline.rotate(query, grid.rotary)
        outs.append(attend(query, keys, values, grid.coords[:, :1] == distinct[:, 0]))
    return torch.cat(outs, 1)


def _factor(baseline: FactorizedAttention, grid: WindowGrid) -> list[Tensor]:
    """Return the labels [N, 4] that rows of one mean share, for the three shares of the heads."""
    sample, place = grid.coords[:, :1], grid.coords[:, 1:]
    coarse = place // torch.tensor((1, baseline.dilation, baseline.dilation), device=place.device)
    repeated = [place % baseline.window, coarse % baseline.window]
    labels = [torch.cat([sample, label], 1) for label in repeated]
    return [regions(grid, baseline.regions), *labels]


def _scan(baseline: ScanAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
    steps = torch.nn.functional.softplus(baseline.step(v.flatten(1)))
    outs = [q[:0]]
    order = [torch.empty(0, dtype=torch.long, device=q.device)]
    for rows in sample_rows(grid):
        rows = walk_snake(rows, grid, sorts_along_y(baseline.block))
        order.append(rows)
        outs.append(_recur(baseline, q[rows], k[rows], v[rows], steps[rows]))
    return torch.cat(outs)[torch.cat(order).argsort()] + baseline.skip * v


def _recur(baseline: ScanAttention, q: Tensor, k: Tensor, v: Tensor, steps: Tensor) -> Tensor:
    """Run the recurrence row by row, in both directions."""
    if not len(q):
        return q
    heads = q.shape[1]
    rates = baseline.rate.exp()
    ahead = _recur_ahead(q, k, v, steps[:, :heads], rates[:heads])
    q, k, v = (x.flip(0) for x in (q, k, v))
    return ahead + _recur_ahead(q, k, v, steps[:, heads:].flip(0), rates[heads:]).flip(0)


def _recur_ahead(q: Tensor, k: Tensor, v: Tensor, steps: Tensor, rates: Tensor) -> Tensor:
    num_rows, heads, width = q.shape
    state = q.new_zeros(heads, width, width)
    outs = []
    for i in range(num_rows):
        step = steps[i, :, None, None]
        update = torch.einsum('hd,he->hde', k[i], v[i])
        state = (-rates[:, None, None] * step).exp() * state + step * update
        outs.append(torch.einsum('hd,hde->he', q[i], state) * width**-0.5)
    return torch.stack(outs)


EQUATIONS: dict[type, Callable[..., Tensor]] = {
    SpatialReductionAttention: _reduced,
    LinformerAttention: _linformer,
    LinearWindowAttention: _linear,
    PerformerAttention: _performer,
    ProxyAttention: _proxies,
    LatentAttention: _latents,
    ConcentratedLinearAttention: _concentrated,
    ScanAttention: _scan,
    FactorizedAttention: _factorized,
}
