"""Sparse convolution in torch alone, as a table of neighbors: sort and search, no hash table.

The table [K, N] names the input row that weight k multiplies for output row n, or -1. Its entries
are pairs (input row, weight, output row). Sorted by weight and cut into tiles, one batched product
multiplies all of them, and missing neighbors cost nothing. Gather, products in groups and scatter
are those of TorchSparse (Tang et al. 2022, "TorchSparse: efficient point cloud inference engine").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stratified3d.deploy.padded import pad_coords, unique_padded

_TILE = 64  # pairs of one weight that are multiplied together
_MAX_TILES = 1 << 24  # a bound keeps products of sizes within 64 bits


class Pairs(NamedTuple):
    """The pairs of rows that meet in a convolution, in tiles that share a weight.

    source: [T, _TILE] int64, input rows; what pads a tile is 0. weight: [T] int64, of each tile.
    by_target: [P] int64, the places of the P pairs in the tiles, grouped by output row. offsets:
    [N + 1] int64, where the pairs of each output row start and the last ones end.
    """

    source: Tensor
    weight: Tensor
    by_target: Tensor
    offsets: Tensor


def submanifold_table(coords: Tensor, shape: Sequence[int], kernel_size: Sequence[int]) -> Tensor:
    """Find the neighbors of every voxel.

    Args:
        coords: [N, 4] integer (sample, z, y, x), each voxel of sample 0 once, in any order.
        shape: (z, y, x) voxels of the grid.
        kernel_size: (z, y, x), odd.
    Returns:
        [K, N] int64: the row of the voxel that lies at step k of the kernel (z slowest, x fastest),
        -1 where there is none.
    """
    reach_z, reach_y, reach_x = (size // 2 for size in kernel_size)
    # a border as wide as the kernel reaches: no step leads into another row of the grid
    stride_y = shape[2] + 2 * reach_x
    stride_z = (shape[1] + 2 * reach_y) * stride_y
    sample, z, y, x = coords.long().unbind(1)
    z = z + sample * (shape[0] + 2 * reach_z)
    key, order = torch.sort((z + reach_z) * stride_z + (y + reach_y) * stride_y + x + reach_x)
    key = F.pad(key, (0, 1), value=-1)  # behind the last: equals no target
    row = F.pad(order, (0, 1), value=-1)

    steps = torch.arange(-reach_z, reach_z + 1, device=key.device)[:, None] * stride_z
    steps = steps + torch.arange(-reach_y, reach_y + 1, device=key.device) * stride_y
    target = steps.reshape(-1, 1) + key[:-1] - reach_x  # [K / X, N], the first along x
    place = torch.searchsorted(key[:-1], target)
    columns = []
    # voxels side by side along x are neighbors in the sorted list: one search finds all of them
    for _ in range(kernel_size[2]):
        is_there = key[place] == target
        columns.append(torch.where(is_there, row[place], -1))
        place = place + is_there
        target = target + 1
    by_key = torch.stack(columns, 1).flatten(0, 1)  # [K, N], of voxels sorted by key
    return torch.empty_like(by_key).index_copy(1, order, by_key)


def strided_table(
    coords: Tensor, shape: Sequence[int], stride: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Join the voxels that lie in one cell of a coarser grid.

    Args:
        coords: [N, 4] int32 (sample, z, y, x) of one sample, each voxel once.
        shape: (z, y, x) voxels of the grid, multiples of the stride.
        stride: (z, y, x), which is the size of the kernel too.
    Returns:
        [K, M] int64: the row of the voxel at step k of the kernel in each cell, or -1; and the M
        cells' coords [M, 4] int32, sorted.
    """
    rows, columns = shape[1] // stride[1], shape[2] // stride[2]
    key, step = _cells_of(coords, shape, stride)
    cells, cell = torch.unique(key, return_inverse=True)  # sorted
    torch._check(cells.shape[0] > 0)
    torch._check(cells.shape[0] <= coords.shape[0])

    size = stride[0] * stride[1] * stride[2]
    table = torch.full((size, cells.shape[0]), -1, dtype=torch.long, device=coords.device)
    source = torch.arange(coords.shape[0], device=coords.device)
    table = table.index_put((step, cell), source)
    return table, _coords_of(cells, rows, columns)


def strided_table_padded(
    coords: Tensor, shape: Sequence[int], stride: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """`strided_table` of voxels of sample 0, with padding of sample 1, in as many rows as before.

    Args:
        coords: [N, 4] int32, at least one row of them padding.
        shape, stride: see `strided_table`.
    Returns:
        [K, N] int64 and coords [N, 4] int32, whose padding is behind the cells.
    """
    key, step = _cells_of(coords, shape, stride)
    rows, columns = shape[1] // stride[1], shape[2] // stride[2]
    behind = shape[0] // stride[0] * rows * columns
    cells, cell = unique_padded(torch.where(coords[:, 0] == 0, key, behind))
    size = stride[0] * stride[1] * stride[2]
    table = torch.full((size, coords.shape[0]), -1, dtype=torch.long, device=coords.device)
    source = torch.arange(coords.shape[0], device=coords.device)
    table = table.index_put((step, cell), source)
    return table, pad_coords(_coords_of(cells, rows, columns), cells < behind)


def _cells_of(coords: Tensor, shape: Sequence[int], stride: Sequence[int]) -> tuple[Tensor, Tensor]:
    """[N] numbers of the coarser cells that voxels lie in, and [N] which step of the kernel."""
    _, z, y, x = coords.long().unbind(1)
    rows, columns = shape[1] // stride[1], shape[2] // stride[2]
    key = ((z // stride[0]) * rows + y // stride[1]) * columns + x // stride[2]
    step = ((z % stride[0]) * stride[1] + y % stride[1]) * stride[2] + x % stride[2]
    return key, step


def _coords_of(cells: Tensor, rows: int, columns: int) -> Tensor:
    """[M] numbers of cells -> [M, 4] int32 (0, z, y, x)."""
    parts = [torch.zeros_like(cells), cells // columns // rows, cells // columns % rows]
    return torch.stack([*parts, cells % columns], 1).int()


def pairs_of(table: Tensor) -> Pairs:
    """Return the pairs of a table [K, N]."""
    is_there = table >= 0
    tiles = (is_there.sum(1) + _TILE - 1) // _TILE  # [K]
    first = (tiles.cumsum(0) - tiles) * _TILE
    place = is_there.cumsum(1) - 1 + first[:, None]  # [K, N]
    kernel = torch.arange(table.shape[0], device=table.device)
    weight = kernel.repeat_interleave(tiles)
    torch._check(weight.shape[0] <= _MAX_TILES)

    step, target = is_there.nonzero(as_tuple=True)
    source = table.new_zeros(weight.shape[0] * _TILE)
    source = source.index_put((place[step, target],), table[step, target])
    target, step = is_there.T.nonzero(as_tuple=True)
    return Pairs(
        source=source.view(-1, _TILE),
        weight=weight,
        by_target=place[step, target],
        offsets=F.pad(is_there.sum(0).cumsum(0), (1, 0)),
    )


class TableConv(nn.Module):
    """A trained `SparseConv` for one sample, with the same weights.

    Args:
        conv: submanifold, or strided with a kernel as large as its stride.
        is_padded: whether a second sample is padding, so that no shape depends on the data: one
            product for each weight takes the place of the tiles.
    Raises:
        ValueError: a convolution of another kind.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, conv: Any, is_padded: bool = False):
        super().__init__()
        self.is_padded = is_padded
        self.kernel_size = list(conv.kernel_size)
        self.kind = conv.kind
        self.key = conv.key
        is_plain = conv.kind == 'strided' and conv.stride == conv.kernel_size
        if conv.kind != 'submanifold' and not (is_plain and conv.padding == [0, 0, 0]):
            raise ValueError(
                f'a {conv.kind} convolution of kernel {conv.kernel_size}, stride {conv.stride} and '
                f'padding {conv.padding} cannot be exported: the kernel must equal the stride'
            )
        weight = conv.conv.weight.detach().flatten(1, 3).permute(1, 2, 0)  # [K, I, O]
        self.register_buffer('weight', weight.contiguous())
        bias = conv.conv.bias
        self.register_buffer('bias', None if bias is None else bias.detach())

    def forward(self, x: Any) -> Any:
        """Convolve a SparseConvTensor, see `SparseConv.forward`."""
        pairs, coords, shape = self._pairs(x)
        if isinstance(pairs, Pairs):
            out = self._multiply_tiles(x.features, pairs)
        else:
            out = self._multiply_rows(x.features, pairs)
        if self.bias is not None:
            out = out + self.bias
        return type(x)(out, coords, shape, x.batch_size, indice_dict=x.indice_dict)

    def _multiply_tiles(self, feats: Tensor, pairs: Pairs) -> Tensor:
        rows = feats[pairs.source]  # [T, _TILE, I]
        products = (rows @ self.weight[pairs.weight]).flatten(0, 1)
        return F.embedding_bag(
            pairs.by_target, products, pairs.offsets, mode='sum', include_last_offset=True
        )

    def _multiply_rows(self, feats: Tensor, table: Tensor) -> Tensor:
        feats = F.pad(feats, (0, 0, 0, 1))  # row -1 is 0
        out = feats[table[0]] @ self.weight[0]
        for rows, weight in zip(table[1:], self.weight[1:]):
            out = out + feats[rows] @ weight
        return out

    def _pairs(self, x: Any) -> tuple[Pairs | Tensor, Tensor, list[int]]:
        """Pairs (a table if padded), coords and grid of the output; kept for the same key."""
        if self.kind == 'strided':
            find = strided_table_padded if self.is_padded else strided_table
            table, coords = find(x.indices, x.spatial_shape, self.kernel_size)
            shape = [size // step for size, step in zip(x.spatial_shape, self.kernel_size)]
            return self._group(table), coords, shape
        pairs = x.indice_dict.get(self.key) if self.key is not None else None
        if pairs is None:
            pairs = self._group(submanifold_table(x.indices, x.spatial_shape, self.kernel_size))
            if self.key is not None:
                x.indice_dict[self.key] = pairs
        return pairs, x.indices, list(x.spatial_shape)

    def _group(self, table: Tensor) -> Pairs | Tensor:
        return table if self.is_padded else pairs_of(table)
