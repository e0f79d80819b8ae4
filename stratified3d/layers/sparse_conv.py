"""Sparse 3D convolution that is right on every device: spconv's kernels on CUDA, its rulebook with
torch on the CPU.

spconv 2.3.8 computes wrong sums on a CPU with more than one thread and its backward needs CUDA; its
rulebook (which input row meets which weight for which output row) is right everywhere. This is the
only file that imports spconv.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import spconv.pytorch as spconv
import torch
from spconv.core import ConvAlgo
from spconv.pytorch import SparseConvTensor, ops
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ['SparseConv', 'SparseConvTensor', 'dense_bev']


class Rulebook(NamedTuple):
    """Pairs of rows: weight k multiplies input row source[k] into output row target[k]; kept per
    key on the CPU.

    settings: kernel size, stride, padding and whether submanifold: what another convolution must
        share to reuse it.
    """

    settings: tuple
    source: list[Tensor]
    target: list[Tensor]
    in_indices: Tensor
    in_shape: list[int]
    out_indices: Tensor
    out_shape: list[int]


class _GatherMatmulScatter(torch.autograd.Function):
    """out[target[k]] += feats[source[k]] @ weight[k] over all k; gathers are redone in the backward
    pass."""

    @staticmethod
    def forward(ctx, feats, weight, source, target, num_out):
        out = feats.new_zeros(num_out, weight.shape[2])
        for k, (a, b) in enumerate(zip(source, target)):
            if len(a):
                out.index_add_(0, b, feats.index_select(0, a) @ weight[k])
        ctx.save_for_backward(feats, weight)
        ctx.pairs = source, target
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        feats, weight = ctx.saved_tensors
        grad_feats, grad_weight = torch.zeros_like(feats), torch.zeros_like(weight)
        with torch.autocast(grad.device.type, enabled=False):
            for k, (a, b) in enumerate(zip(*ctx.pairs)):
                if len(a):
                    g = grad.index_select(0, b)
                    grad_feats.index_add_(0, a, g @ weight[k].T)
                    grad_weight[k] = feats.index_select(0, a).T @ g
        return grad_feats, grad_weight, None, None, None


class SparseConv(nn.Module):
    """A 3D convolution on a SparseConvTensor (Graham et al. 2018, "3D semantic segmentation with
    submanifold ...").

    Args:
        in_channels, out_channels: widths.
        kernel_size, stride, padding: an int or (z, y, x).
        kind: 'submanifold' keeps the active set (stride 1, odd kernel); 'strided' makes a new one;
        'inverse' undoes
            the 'strided' convolution of the same key.
        key: convolutions of one key share a rulebook; required for 'inverse'.
        bias: whether to add a bias.
        precision: what CUDA kernels compute in, 'fp32' or 'fp16' (spconv is asked to accumulate in
        fp32); the result
            has the input's dtype. The CPU computes in fp32 or wider.
    Raises:
        ValueError: an unknown kind or precision, an even submanifold kernel, an inverse without a
            key.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 3,
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        kind: str = 'submanifold',
        key: str | None = None,
        bias: bool = True,
        precision: str = 'fp32',
    ):
        super().__init__()
        kernel_size, stride, padding = (_triple(x) for x in (kernel_size, stride, padding))
        if precision not in ('fp32', 'fp16'):
            raise ValueError(f"precision is 'fp32' or 'fp16', not {precision!r}")
        if kind == 'submanifold':
            if stride != [1, 1, 1] or any(k % 2 == 0 for k in kernel_size):
                raise ValueError(
                    f'a submanifold convolution has stride 1 and an odd kernel, not {stride} and '
                    f'{kernel_size}'
                )
            conv = _SubMConv3d(
                in_channels, out_channels, kernel_size, bias=bias, indice_key=key, fp32_accum=True
            )
        elif kind == 'strided':
            conv = _SparseConv3d(
                in_channels,
                out_channels,
                kernel_size,
                stride,
                padding,
                bias=bias,
                indice_key=key,
                fp32_accum=True,
            )
        elif kind == 'inverse':
            if key is None:
                raise ValueError(
                    "an 'inverse' convolution needs the key of the 'strided' one it undoes"
                )
            conv = _SparseInverseConv3d(
                in_channels, out_channels, kernel_size, indice_key=key, bias=bias, fp32_accum=True
            )
        else:
            raise ValueError(f"kind is 'submanifold', 'strided' or 'inverse', not {kind!r}")
        # spconv's shortcut for kernels of one voxel reads the weight transposed
        conv.conv1x1 = False
        self.conv, self.kind, self.key, self.precision = conv, kind, key, precision
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        """[N, in_channels] on x's active voxels -> [N', out_channels] on the output's."""
        if x.features.is_cuda and len(x.features):
            dtype = x.features.dtype
            with torch.autocast('cuda', dtype=torch.float16, enabled=self.precision == 'fp16'):
                out = self.conv(
                    x.replace_feature(x.features.to(getattr(torch, f'float{self.precision[2:]}')))
                )
            return out.replace_feature(out.features.to(dtype))
        book = self._rulebook(x)
        weight = self.conv.weight.flatten(1, 3).permute(1, 2, 0)  # [O, z, y, x, I] -> [K, I, O]
        feats = x.features.to(torch.promote_types(x.features.dtype, weight.dtype))
        if self.kind == 'inverse':
            source, target, indices, shape = (
                book.target,
                book.source,
                book.in_indices,
                book.in_shape,
            )
        else:
            source, target, indices, shape = (
                book.source,
                book.target,
                book.out_indices,
                book.out_shape,
            )
        with torch.autocast(x.features.device.type, enabled=False):
            out = _GatherMatmulScatter.apply(feats, weight, source, target, len(indices))
            if self.conv.bias is not None:
                out = out + self.conv.bias
        # the dict is shared on purpose: a rulebook made once serves every later convolution of its
        # key
        return SparseConvTensor(
            out.to(x.features.dtype), indices, shape, x.batch_size, indice_dict=x.indice_dict
        )

    def _rulebook(self, x: SparseConvTensor) -> Rulebook:
        book = x.indice_dict.get(self.key) if self.key is not None else None
        if self.kind == 'inverse':
            if (
                book is None
                or len(book.out_indices) != len(x.indices)
                or book.settings[0] != self.kernel_size
                or book.settings[3]
            ):
                raise ValueError(
                    f'no strided convolution of key {self.key!r} and kernel {self.kernel_size} made the '
                    'voxels of this inverse one'
                )
        elif book is None:
            book = self._make_rulebook(x)
            if self.key is not None:
                x.indice_dict[self.key] = book
        elif book.in_shape != list(x.spatial_shape) or len(book.in_indices) != len(x.indices):
            raise ValueError(
                f'key {self.key!r} holds the rulebook of other voxels ({len(book.in_indices)} in '
                f'{book.in_shape}, now {len(x.indices)} in {list(x.spatial_shape)})'
            )
        elif book.settings != self._settings():
            raise ValueError(
                f'key {self.key!r} holds the rulebook of another convolution (kernel, stride, padding, '
                f'submanifold): {book.settings}, not {self._settings()}'
            )
        return book

    def _settings(self) -> tuple:
        return self.kernel_size, self.stride, self.padding, self.kind == 'submanifold'

    def _make_rulebook(self, x: SparseConvTensor) -> Rulebook:
        subm, shape = self.kind == 'submanifold', list(x.spatial_shape)
        out_shape = (
            shape
            if subm
            else [
                (s + 2 * p - k) // t + 1
                for s, k, t, p in zip(shape, self.kernel_size, self.stride, self.padding)
            ]
        )
        if not len(x.indices):
            empty = [x.indices.new_zeros(0, dtype=torch.int64)] * self.conv.weight.flatten(
                1, 3
            ).shape[1]
            return Rulebook(self._settings(), empty, empty, x.indices, shape, x.indices, out_shape)
        out_indices, pairs, counts = ops.get_indice_pairs(
            x.indices.contiguous(),
            x.batch_size,
            shape,
            ConvAlgo.Native,
            self.kernel_size,
            self.stride,
            self.padding,
            [1, 1, 1],
            [0, 0, 0],
            subm=subm,
            transpose=False,
        )
        source = [pairs[0, k, :n].long() for k, n in enumerate(counts.tolist())]
        target = [pairs[1, k, :n].long() for k, n in enumerate(counts.tolist())]
        if (
            subm
        ):  # spconv stores the first half of the kernel; the second mirrors it around the center
            half = len(source) // 2
            rows = torch.arange(len(x.indices))
            source, target = (
                source[:half] + [rows] + target[:half][::-1],
                target[:half] + [rows] + source[:half][::-1],
            )
        return Rulebook(self._settings(), source, target, x.indices, shape, out_indices, out_shape)


def dense_bev(x: SparseConvTensor) -> Tensor:
    """Scatter voxels to a bird's-eye-view map, zeros where no voxel is active.

    [N, C] -> [B, Z C, Y, X], the C channels of the lowest slice first; channels-last in memory,
    which 2D convolutions like best and which needs no transposition here.
    """
    z, y, x_size = x.spatial_shape
    b, iz, iy, ix = x.indices.long().unbind(1)
    cell = ((b * y + iy) * x_size + ix) * z + iz
    flat = x.features.new_zeros(x.batch_size * y * x_size * z, x.features.shape[1]).index_copy(
        0, cell, x.features
    )
    return flat.view(x.batch_size, y, x_size, -1).permute(0, 3, 1, 2)


def _triple(value: int | Sequence[int]) -> list[int]:
    return [int(value)] * 3 if isinstance(value, int) else [int(v) for v in value]


class _Plain:
    """What is switched off in spconv's modules, which run on CUDA only."""

    # mmdet3d patches in a loader that permutes weights saved without a version number; ours are
    # loaded as saved
    _load_from_state_dict = nn.Module._load_from_state_dict

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        # always as in training: spconv's inference path has no gradient and does not follow
        # autocast
        return self._conv_forward(True, x, self.weight, self.bias)


class _SubMConv3d(_Plain, spconv.SubMConv3d):
    pass


class _SparseConv3d(_Plain, spconv.SparseConv3d):
    pass


class _SparseInverseConv3d(_Plain, spconv.SparseInverseConv3d):
    pass
