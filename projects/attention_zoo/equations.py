"""The equation of every mixer of the zoo over all pairs of rows: slow on purpose, for tests.

Equations share with the mixers only settings and parameters; they compute windows, sets and cells
in their own way.
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
    """Compute `baseline.attend` by its equation.

    Args:
        q, k, v: [N, H, D] in the grid's window order.
        strata: strata_k, strata_v [B, M, H, D] and strata_bias [B, M, H], or nothing.
    Returns:
        [N, H, D].
    """
    if isinstance(baseline, StratifiedAttention):
        if not strata:
            return _attend(q, k, v, same(windows(grid)))
        return _attend_with_strata(q, k, v, grid, *strata)
    return EQUATIONS[type(baseline)](baseline, q, k, v, grid)


def same(values: Tensor) -> Tensor:
    """Return which pairs of rows have equal values [N] or [N, n]: bool [N, N]."""
    if values.dim() == 1:
        values = values.unsqueeze(1)
    return (values[:, None] == values[None]).all(-1)


def windows(grid: WindowGrid, times: int = 1) -> Tensor:
    """Return the window (batch, z, y, x) of every row, [N, 4].

    times: how many times as long as the grid's windows they are.
    """
    shape = torch.tensor(grid.window_shape, device=grid.coords.device)
    shift = torch.tensor(grid.shift, device=grid.coords.device)
    index = (grid.coords[:, 1:] + shift) // (times * shape)
    return torch.cat([grid.coords[:, :1], index], 1).long()


def _attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Softmax attention over the keys that are seen: [N, K] or, for each head, [H, N, K]."""
    logits = torch.einsum('ihd,jhd->hij', q, k) * q.shape[-1] ** -0.5
    weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum('hij,jhd->ihd', weights, v)


def _average(weights: Tensor, v: Tensor) -> Tensor:
    """Average the values with weights [H, N, N]; zeros where all weights are zero."""
    total = weights.sum(-1, keepdim=True)
    return torch.einsum('hij,jhd->ihd', weights / total.masked_fill(total == 0, 1), v)


def _attend_with_strata(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: WindowGrid,
    strata_k: Tensor,
    strata_v: Tensor,
    strata_bias: Tensor,
) -> Tensor:
    """One softmax over the window and the strata tokens of the sample."""
    batch, strata = strata_k.shape[:2]
    sample = torch.arange(batch, device=q.device).repeat_interleave(strata)  # [B M]
    near = same(windows(grid))
    far = grid.coords[:, :1] == sample
    seen = torch.cat([near, far], 1)  # [N, N + B M]

    keys = torch.cat([k, strata_k.flatten(0, 1)])
    values = torch.cat([v, strata_v.flatten(0, 1)])
    no_bias = strata_bias.new_zeros(len(q), q.shape[1])
    bias = torch.cat([no_bias, strata_bias.flatten(0, 1)])  # [N + B M, H]

    scale = q.shape[-1] ** -0.5
    logits = torch.einsum('ihd,jhd->ijh', q, keys) * scale + bias
    weights = logits.masked_fill(~seen[..., None], -torch.inf).softmax(1)
    return torch.einsum('ijh,jhd->ihd', weights.to(values.dtype), values)


def _full(baseline: FullAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
    return _attend(q, k, v, same(grid.coords[:, 0]))


def _sample_rows(grid: WindowGrid) -> list[Tensor]:
    """Return the rows of every sample."""
    batch = len(grid.plan.batch_offsets) - 1
    return [(grid.coords[:, 0] == b).nonzero().squeeze(1) for b in range(batch)]


def _axis_key(grid: WindowGrid, block: int) -> Tensor:
    """Return what rows are sorted by: (x, y, z) in even blocks, (y, x, z) in odd ones."""
    z, y, x = grid.coords[:, 1:].long().unbind(1)
    first, second = (y, x) if block % 2 else (x, y)
    return (first * 65536 + second) * 65536 + z


def _sets(baseline: SetAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
    window = windows(grid)
    key = _axis_key(grid, baseline.block)
    number = torch.full((len(q),), -1, device=q.device)  # of every row's set
    count = 0
    for own in window.unique(dim=0):
        rows = (window == own).all(1).nonzero().squeeze(1)
        rows = rows[key[rows].argsort()]
        for members in _cut_into_sets(len(rows), baseline.set_size):
            number[rows[members]] = count
            count += 1

    if (number < 0).any():
        raise AssertionError('a voxel is in no set')
    return _attend(q, k, v, same(number))


def _cut_into_sets(count: int, size: int) -> list[list[int]]:
    """Return which of the voxels 0 to count - 1 of a sorted window fill the places of every set."""
    num_sets = -(-count // size)
    places = num_sets * size
    voxels = [place * count // places for place in range(places)]
    return [voxels[start : start + size] for start in range(0, places, size)]


def _equal_groups(
    baseline: EqualGroupAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid
) -> Tensor:
    seen = q.new_zeros(len(q), len(q), dtype=torch.bool)
    key = _axis_key(grid, baseline.block)
    for rows in _sample_rows(grid):
        rows = rows[key[rows].argsort()]
        rows = rows[grid.plan.window_start[rows].argsort(stable=True)]
        for queries, keys in _cut_into_groups(rows, baseline.group_size):
            seen[queries[:, None], keys] = True
    return _attend(q, k, v, seen)


def _cut_into_groups(rows: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Return the queries and keys of every group; the keys of the last one reach back."""
    latest = max(0, len(rows) - size)
    groups = []
    for start in range(0, len(rows), size):
        end = start + size
        groups.append((rows[start:end], rows[min(start, latest) : end]))
    return groups


def _planes(baseline: PlaneAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
    shape = torch.tensor(grid.window_shape, device=q.device)
    shift = torch.tensor(grid.shift, device=q.device)
    slab = (grid.coords[:, 1:] + shift) % shape // baseline.thickness  # [N, 3]
    near = same(windows(grid))

    seen = []  # of every head
    for axis, heads in enumerate(torch.arange(q.shape[1]).tensor_split(3)):
        seen += [near & same(slab[:, axis])] * len(heads)
    return _attend(q, k, v, torch.stack(seen))


def _sampled(
    baseline: SampledWindowAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid
) -> Tensor:
    sampled = _sampled_rows(baseline, grid)  # [N] bool
    seen = same(windows(grid)) | (same(windows(grid, times=2)) & sampled)
    if not baseline.contextual:
        return _attend(q, k, v, seen)

    query = q * q.shape[-1] ** -0.5
    logits = torch.einsum('ihd,jhd->hij', query, k)
    value = v[None]  # [1, N, H, D], with the tables [N, N, H, D]
    for axis, table in enumerate(baseline.tables):
        place = grid.coords[:, 1 + axis]
        to_query, to_key, to_value = _look_up(table, place, grid.window_shape[axis])
        logits = logits + torch.einsum('ihd,ijhd->hij', query, to_query)
        logits = logits + torch.einsum('jhd,ijhd->hij', k, to_key)
        value = value + to_value

    weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum('hij,ijhd->ihd', weights, value)


def _look_up(table: Tensor, place: Tensor, length: int) -> Tensor:
    """Look up the offsets of all pairs of places [N] along an axis: [3, N, N, H, D].

    table: [3, 4 length - 1, H, D], from offset -(2 length - 1) to 2 length - 1; pairs further apart
        are not seen.
    """
    offset = place[:, None] - place[None]
    index = offset + 2 * length - 1
    return table[:, index.long().clamp(0, 4 * length - 2)]


def _sampled_rows(baseline: SampledWindowAttention, grid: WindowGrid) -> Tensor:
    """Return which rows are sampled, bool [N]."""
    sampled = torch.zeros(len(grid.coords), dtype=torch.bool, device=grid.coords.device)
    for rows in _sample_rows(grid):
        count = -(-len(rows) // round(1 / baseline.part))
        chosen = [i * len(rows) // count for i in range(count)]
        if baseline.sampling == 'fps':
            chosen = chosen[:1]
            positions = grid.positions[rows]
            while len(chosen) < count:
                offset = positions[:, None] - positions[chosen]
                nearest = offset.square().sum(-1).amin(1)
                chosen.append(int(nearest.argmax()))
        sampled[rows[chosen]] = True
    return sampled


def _reduced(
    baseline: SpatialReductionAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid
) -> Tensor:
    cells, mean = _cell_means(grid, baseline.reduction, q.dtype)
    keys = baseline.reduce_k(mean @ k.flatten(1)).view(-1, *k.shape[1:])
    values = baseline.reduce_v(mean @ v.flatten(1)).view(-1, *v.shape[1:])

    if baseline.use_rotary:
        assert grid.rotary is not None  # the grid is built with it
        places = mean.double() @ grid.positions.double()
        q = apply_rotary(q, *grid.rotary)
        keys = apply_rotary(keys, *rotary_angles(places.float(), q.shape[-1]))
    return _attend(q, keys, values, grid.coords[:, :1] == cells[:, 0])


def _cell_means(grid: WindowGrid, reduction: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the occupied cells [K, 4], and the matrix [K, N] that averages the rows of each."""
    index = grid.coords[:, 1:] // reduction
    cell = torch.cat([grid.coords[:, :1], index], 1)  # [N, 4]
    cells, member = cell.unique(dim=0, return_inverse=True)

    number = torch.arange(len(cells), device=member.device)
    belongs = (member == number[:, None]).to(dtype)
    return cells, belongs / belongs.sum(1, keepdim=True)


def _linformer(
    baseline: LinformerAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid
) -> Tensor:
    samples = _sample_rows(grid)
    keys, values = [], []  # [rank, H, D] of every sample
    for rows in samples:
        keys.append(_mix_rows(baseline, k[rows]))
        values.append(_mix_rows(baseline, v[rows]))
    owner = torch.arange(len(samples), device=q.device).repeat_interleave(baseline.rank)
    return _attend(q, torch.cat(keys), torch.cat(values), grid.coords[:, :1] == owner)


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
    return _average(weights.masked_fill(~same(windows(grid)), 0), v)


def _performer(
    baseline: PerformerAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid
) -> Tensor:
    weights = torch.einsum(
        'ihf,jhf->hij', _random_features(baseline, q), _random_features(baseline, k)
    )
    return _average(weights.masked_fill(~same(grid.coords[:, 0]), 0), v)


def _random_features(baseline: PerformerAttention, x: Tensor) -> Tensor:
    """Return exp(w x - |x|^2 / 2) of x [N, H, D], scaled for a softmax: [N, H, F]."""
    x = x * x.shape[-1] ** -0.25
    projected = torch.einsum('nhd,fd->nhf', x, baseline.features.to(x.dtype))
    return (projected - x.square().sum(-1, keepdim=True) / 2).exp()


EQUATIONS: dict[type, Callable[..., Tensor]] = {
    FullAttention: _full,
    SetAttention: _sets,
    EqualGroupAttention: _equal_groups,
    PlaneAttention: _planes,
    SampledWindowAttention: _sampled,
    SpatialReductionAttention: _reduced,
    LinformerAttention: _linformer,
    LinearWindowAttention: _linear,
    PerformerAttention: _performer,
}
