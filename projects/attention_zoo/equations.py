"""What every mixer of the zoo must compute, by its paper's equation over all pairs of rows; slow on
purpose.

Nothing is shared with the mixers but their settings and parameters: windows, sets and cells are
    found anew.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from projects.attention_zoo.equal_groups import EqualGroupAttention
from projects.attention_zoo.full import FullAttention
from projects.attention_zoo.linear import LinearWindowAttention, PerformerAttention
from projects.attention_zoo.planes import PlaneAttention
from projects.attention_zoo.reduced import LinformerAttention, SpatialReductionAttention
from projects.attention_zoo.sampled import SampledWindowAttention
from projects.attention_zoo.sets import SetAttention
from stratified3d.layers.attention import StratifiedAttention, WindowGrid
from stratified3d.ops import apply_rotary, rotary_angles


def equation(
    baseline: nn.Module, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid, *strata: Tensor
) -> Tensor:
    """baseline.attend by its equation: q, k, v [N, H, D] in the grid's window order (and strata_k,
    strata_v, strata_bias) -> [N, H, D]."""
    if isinstance(baseline, StratifiedAttention):
        return _joint(q, k, v, grid, *strata)
    return EQUATIONS[type(baseline)](baseline, q, k, v, grid)


def same(values: Tensor) -> Tensor:
    """[N, N]: which rows of values [N] or [N, n] are equal."""
    values = values if values.dim() == 2 else values.unsqueeze(1)
    return (values[:, None] == values[None]).all(-1)


def windows(grid: WindowGrid, times: int = 1) -> Tensor:
    """[N, 4] (batch, z, y, x) of the window of every row, of windows that many times as long."""
    shape, shift = (
        torch.tensor(x, device=grid.coords.device) for x in (grid.window_shape, grid.shift)
    )
    return torch.cat(
        [grid.coords[:, :1], (grid.coords[:, 1:] + shift) // (times * shape)], 1
    ).long()


def _attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """softmax over the keys that are seen: [N, K] or, for each head, [H, N, K]."""
    logits = torch.einsum('ihd,jhd->hij', q, k) * q.shape[-1] ** -0.5
    return torch.einsum('hij,jhd->ihd', logits.masked_fill(~seen, -torch.inf).softmax(-1), v)


def _weigh(weights: Tensor, v: Tensor) -> Tensor:
    total = weights.sum(-1, keepdim=True)
    return torch.einsum('hij,jhd->ihd', weights / total.masked_fill(total == 0, 1), v)


def _joint(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: WindowGrid,
    strata_k: Tensor | None = None,
    strata_v: Tensor | None = None,
    strata_bias: Tensor | None = None,
) -> Tensor:
    near = same(windows(grid))
    if strata_k is None:
        return _attend(q, k, v, near)
    owner = torch.arange(len(strata_k), device=q.device).repeat_interleave(strata_k.shape[1])
    seen = torch.cat([near, grid.coords[:, :1] == owner], 1)
    keys, values = (torch.cat([x, s.flatten(0, 1)]) for x, s in ((k, strata_k), (v, strata_v)))
    bias = torch.cat([strata_bias.new_zeros(len(q), q.shape[1]), strata_bias.flatten(0, 1)])
    logits = torch.einsum('ihd,jhd->ijh', q, keys) * q.shape[-1] ** -0.5 + bias
    weights = logits.masked_fill(~seen[..., None], -torch.inf).softmax(1)
    return torch.einsum('ijh,jhd->ihd', weights.to(values.dtype), values)


def _sample_rows(grid: WindowGrid) -> list[Tensor]:
    return [
        (grid.coords[:, 0] == b).nonzero().squeeze(1)
        for b in range(len(grid.plan.batch_offsets) - 1)
    ]


def _axis_key(grid: WindowGrid, odd: bool) -> Tensor:
    z, y, x = grid.coords[:, 1:].long().unbind(1)
    first, second = (y, x) if odd else (x, y)
    return (first * 65536 + second) * 65536 + z


def _sets(baseline: SetAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
    number, count = torch.full((len(q),), -1, device=q.device), 0
    window, key = windows(grid), _axis_key(grid, baseline.block % 2)
    for own in window.unique(dim=0):
        rows = (window == own).all(1).nonzero().squeeze(1)
        rows = rows[key[rows].argsort()]
        sets = -(-len(rows) // baseline.set_size)
        for j in range(sets):
            for place in range(baseline.set_size):
                number[
                    rows[(j * baseline.set_size + place) * len(rows) // (sets * baseline.set_size)]
                ] = count
            count += 1
    if (number < 0).any():
        raise AssertionError('a voxel is in no set')
    return _attend(q, k, v, same(number))


def _equal_groups(
    baseline: EqualGroupAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid
) -> Tensor:
    seen, size = q.new_zeros(len(q), len(q), dtype=torch.bool), baseline.group_size
    key = _axis_key(grid, baseline.block % 2)
    for rows in _sample_rows(grid):
        rows = rows[key[rows].argsort()]
        rows = rows[grid.plan.window_start[rows].argsort(stable=True)]
        for start in range(0, len(rows), size):
            keys = rows[max(0, min(start, len(rows) - size)) : start + size]
            seen[rows[start : start + size, None], keys] = True
    return _attend(q, k, v, seen)


def _planes(baseline: PlaneAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
    shape, shift = (torch.tensor(x, device=q.device) for x in (grid.window_shape, grid.shift))
    slab = (grid.coords[:, 1:] + shift) % shape // baseline.thickness
    near, seen = same(windows(grid)), []
    for axis, heads in enumerate(torch.arange(q.shape[1]).tensor_split(3)):
        seen += [near & same(slab[:, axis])] * len(heads)
    return _attend(q, k, v, torch.stack(seen))


def _sampled(
    baseline: SampledWindowAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid
) -> Tensor:
    part = torch.zeros(len(q), dtype=torch.bool, device=q.device)
    for rows in _sample_rows(grid):
        count = -(-len(rows) // round(1 / baseline.part))
        chosen = [i * len(rows) // count for i in range(count)]
        if baseline.sampling == 'fps':
            chosen, position = chosen[:1], grid.positions[rows]
            while len(chosen) < count:
                apart = (position[:, None] - position[chosen]).square().sum(-1).amin(1)
                chosen.append(int(apart.argmax()))
        part[rows[chosen]] = True
    seen = same(windows(grid)) | (same(windows(grid, times=2)) & part)
    if not baseline.contextual:
        return _attend(q, k, v, seen)
    query, value = q * q.shape[-1] ** -0.5, v[None]
    logits = torch.einsum('ihd,jhd->hij', query, k)
    for axis, (table, w) in enumerate(zip(baseline.tables, grid.window_shape)):
        offset = grid.coords[:, None, 1 + axis] - grid.coords[None, :, 1 + axis] + 2 * w - 1
        at = table[:, offset.long().clamp(0, 4 * w - 2)]  # [3, N, N, H, D]
        logits = (
            logits
            + torch.einsum('ihd,ijhd->hij', query, at[0])
            + torch.einsum('jhd,ijhd->hij', k, at[1])
        )
        value = value + at[2]
    return torch.einsum('hij,ijhd->ihd', logits.masked_fill(~seen, -torch.inf).softmax(-1), value)


def _reduced(
    baseline: SpatialReductionAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid
) -> Tensor:
    cells, member = torch.cat(
        [grid.coords[:, :1], grid.coords[:, 1:] // baseline.reduction], 1
    ).unique(dim=0, return_inverse=True)
    mean = (member == torch.arange(len(cells), device=q.device)[:, None]).to(q.dtype)
    mean = mean / mean.sum(1, keepdim=True)
    keys, values = (
        reduce(mean @ x.flatten(1)).view(-1, *x.shape[1:])
        for reduce, x in ((baseline.reduce_k, k), (baseline.reduce_v, v))
    )
    if baseline.use_rotary:
        places = mean.double() @ grid.positions.double()
        q, keys = (
            apply_rotary(q, *grid.rotary),
            apply_rotary(keys, *rotary_angles(places.float(), q.shape[-1])),
        )
    return _attend(q, keys, values, grid.coords[:, :1] == cells[:, 0])


def _linformer(
    baseline: LinformerAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid
) -> Tensor:
    mixed, length = ([], []), baseline.length
    for rows in _sample_rows(grid):
        bounds = torch.arange(length + 1) * len(rows) // length
        filled = (bounds.diff() > 0).nonzero().squeeze(1).tolist()
        for out, x in zip(mixed, (k, v)):
            means = [x[rows[bounds[c] : bounds[c + 1]]].mean(0) for c in filled]
            columns = baseline.projection[:, filled]
            out.append(torch.einsum('rc,chd->rhd', columns, torch.stack(means) if means else x[:0]))
    owner = torch.arange(len(mixed[0]), device=q.device).repeat_interleave(baseline.rank)
    return _attend(q, torch.cat(mixed[0]), torch.cat(mixed[1]), grid.coords[:, :1] == owner)


def _linear(
    baseline: LinearWindowAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid
) -> Tensor:
    weights = torch.einsum('ihd,jhd->hij', q.relu(), k.relu())
    return _weigh(weights.masked_fill(~same(windows(grid)), 0), v)


def _performer(
    baseline: PerformerAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid
) -> Tensor:
    q, k = (x * x.shape[-1] ** -0.25 for x in (q, k))
    features = [
        (
            torch.einsum('nhd,fd->nhf', x, baseline.features.to(x.dtype))
            - x.square().sum(-1, keepdim=True) / 2
        ).exp()
        for x in (q, k)
    ]
    weights = torch.einsum('ihf,jhf->hij', *features)
    return _weigh(weights.masked_fill(~same(grid.coords[:, 0]), 0), v)


EQUATIONS: dict[type, Callable[..., Tensor]] = {
    FullAttention: lambda baseline, q, k, v, grid: _attend(q, k, v, same(grid.coords[:, 0])),
    SetAttention: _sets,
    EqualGroupAttention: _equal_groups,
    PlaneAttention: _planes,
    SampledWindowAttention: _sampled,
    SpatialReductionAttention: _reduced,
    LinformerAttention: _linformer,
    LinearWindowAttention: _linear,
    PerformerAttention: _performer,
}
