"""Sparse 3D convolution that is right on every device.

On CUDA spconv's kernels run. On the CPU spconv 2.3.8 computes wrong sums with more than one thread,
and its backward pass needs CUDA; its rulebook (which input row meets which weight for which output
row) is right everywhere, so there it is combined with torch's products. This is the only file that
imports spconv.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import spconv.pytorch as spconv
import torch
from spconv import constants
from spconv.core import ConvAlgo
from spconv.pytorch import SparseConvTensor, ops
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ['SparseConv', 'SparseConvTensor', 'dense_bev']


class Rulebook(NamedTuple):
    """Pairs of rows: weight k multiplies input row source[k] into output row target[k].

    Rulebooks are kept per key on the CPU. settings are kernel size, stride, padding and whether the
    convolution is submanifold: what another convolution must share to reuse the rulebook.
    """

    settings: tuple
    source: list[Tensor]
    target: list[Tensor]
    in_indices: Tensor
    in_shape: list[int]
    out_indices: Tensor
    out_shape: list[int]


class _GatherMatmulScatter(torch.autograd.Function):
    """out[target[k]] += feats[source[k]] @ weight[k] over all k.

    The backward pass gathers again, so that no gathered rows are kept.
    """

    @staticmethod
    def forward(ctx, feats, weight, source, target, num_out):
        out = feats.new_zeros(num_out, weight.shape[2])
        for k, (rows_in, rows_out) in enumerate(zip(source, target)):
            if len(rows_in):
                out.index_add_(0, rows_out, feats.index_select(0, rows_in) @ weight[k])
        ctx.save_for_backward(feats, weight)
        ctx.pairs = source, target
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        feats, weight = ctx.saved_tensors
        grad_feats = torch.zeros_like(feats)
        grad_weight = torch.zeros_like(weight)
        with torch.autocast(grad.device.type, enabled=False):
            for k, (rows_in, rows_out) in enumerate(zip(*ctx.pairs)):
                if len(rows_in):
                    grad_out = grad.index_select(0, rows_out)
                    grad_feats.index_add_(0, rows_in, grad_out @ weight[k].T)
                    grad_weight[k] = feats.index_select(0, rows_in).T @ grad_out
        return grad_feats, grad_weight, None, None, None


class SparseConv(nn.Module):
    """A 3D convolution on a SparseConvTensor.

    Graham et al. 2018, "3D semantic segmentation with submanifold sparse convolutional networks".

    Args:
        in_channels, out_channels: widths.
        kernel_size, stride, padding: an int or (z, y, x).
        kind: 'submanifold' keeps the active set (stride 1, odd kernel); 'strided' makes a new one;
            'inverse' undoes the 'strided' convolution of the same key.
        key: convolutions of one key share a rulebook; required for 'inverse'.
        bias: whether to add a bias.
        precision: what CUDA kernels compute in; the result has the input's dtype. 'fp32' is TF32
            where torch's own convolutions may use it (torch.backends.cudnn.allow_tf32, the
            default). With 'fp16' spconv 2.3.8 may add up in fp16, too, whatever it is asked for,
            and small gradients vanish without a loss scale: for mixed-precision training only. The
            CPU computes in fp32 or wider.
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
        self.kernel_size = _triple(kernel_size)
        self.stride = _triple(stride)
        self.padding = _triple(padding)
        self.kind = kind
        self.key = key
        self.precision = precision
        self._check_settings()

        widths = (in_channels, out_channels, self.kernel_size)
        settings = dict(bias=bias, indice_key=key, fp32_accum=True)
        if kind == 'strided':
            self.conv = _SparseConv3d(*widths, self.stride, self.padding, **settings)
        elif kind == 'inverse':
            self.conv = _SparseInverseConv3d(*widths, **settings)
        else:
            self.conv = _SubMConv3d(*widths, **settings)
        # spconv's shortcut for kernels of one voxel reads the weight transposed
        self.conv.conv1x1 = False

    def _check_settings(self) -> None:
        if self.precision not in ('fp32', 'fp16'):
            raise ValueError(f"precision is 'fp32' or 'fp16', not {self.precision!r}")
        if self.kind not in ('submanifold', 'strided', 'inverse'):
            raise ValueError(f"kind is 'submanifold', 'strided' or 'inverse', not {self.kind!r}")

        is_even = any(size % 2 == 0 for size in self.kernel_size)
        if self.kind == 'submanifold' and (self.stride != [1, 1, 1] or is_even):
            raise ValueError(
                f'a submanifold convolution has stride 1 and an odd kernel, not {self.stride} and '
                f'{self.kernel_size}'
            )
        if self.kind == 'inverse' and self.key is None:
            raise ValueError(
                "an 'inverse' convolution needs the key of the 'strided' one that it undoes"
            )

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        """Convolve [N, in_channels] on x's active voxels to [N', out_channels] on the output's."""
        if x.features.is_cuda and len(x.features):
            return self._forward_on_cuda(x)

        book = self._rulebook(x)
        if self.kind == 'inverse':
            source, target = book.target, book.source
            indices, shape = book.in_indices, book.in_shape
        else:
            source, target = book.source, book.target
            indices, shape = book.out_indices, book.out_shape

        weight = self.conv.weight.flatten(1, 3).permute(1, 2, 0)  # [O, z, y, x, I] -> [K, I, O]
        feats = x.features.to(torch.promote_types(x.features.dtype, weight.dtype))
        with torch.autocast(x.features.device.type, enabled=False):
            out = _GatherMatmulScatter.apply(feats, weight, source, target, len(indices))
            if self.conv.bias is not None:
                out = out + self.conv.bias

        # the dict is shared: a rulebook made once serves every later convolution of its key
        out = out.to(x.features.dtype)
        return SparseConvTensor(out, indices, shape, x.batch_size, indice_dict=x.indice_dict)

    def _forward_on_cuda(self, x: SparseConvTensor) -> SparseConvTensor:
        use_fp16 = self.precision == 'fp16'
        feats = x.features.to(torch.float16 if use_fp16 else torch.float32)
        # spconv reads both for every product; the current device decides where its kernels run
        constants.SPCONV_ALLOW_TF32 = torch.backends.cudnn.allow_tf32
        autocast = torch.autocast('cuda', dtype=torch.float16, enabled=use_fp16)
        with torch.cuda.device(feats.device), autocast:
            out = self.conv(x.replace_feature(feats))
        if self.key in out.indice_dict:
            # spconv puts a new rulebook into a copy of the dict, where no later convolution sees it
            x.indice_dict.setdefault(self.key, out.indice_dict[self.key])
        return out.replace_feature(out.features.to(x.features.dtype))

    def _rulebook(self, x: SparseConvTensor) -> Rulebook:
        """Return the rulebook of this convolution's key, made now unless another one made it."""
        book = x.indice_dict.get(self.key) if self.key is not None else None
        if self.kind == 'inverse':
            return self._check_inverse(book, x)

        if book is None:
            book = self._make_rulebook(x)
            if self.key is not None:
                x.indice_dict[self.key] = book
        elif book.in_shape != list(x.spatial_shape) or len(book.in_indices) != len(x.indices):
            raise ValueError(
                f'key {self.key!r} has the rulebook of other voxels ({len(book.in_indices)} in '
                f'{book.in_shape}, now {len(x.indices)} in {list(x.spatial_shape)})'
            )
        elif book.settings != self._settings():
            raise ValueError(
                f'key {self.key!r} has the rulebook of another convolution (kernel, stride, '
                f'padding, submanifold): {book.settings}, not {self._settings()}'
            )
        return book

    def _check_inverse(self, book: Rulebook | None, x: SparseConvTensor) -> Rulebook:
        """Return the rulebook if it is of the strided convolution that made x, else raise."""
        if book is not None:
            kernel_size, _, _, is_submanifold = book.settings
            is_same = kernel_size == self.kernel_size and not is_submanifold
            if is_same and len(book.out_indices) == len(x.indices):
                return book
        raise ValueError(
            f'no strided convolution of key {self.key!r} and kernel {self.kernel_size} made the '
            'voxels of this inverse one'
        )

    def _settings(self) -> tuple:
        return self.kernel_size, self.stride, self.padding, self.kind == 'submanifold'

    def _make_rulebook(self, x: SparseConvTensor) -> Rulebook:
        is_submanifold = self.kind == 'submanifold'
        shape = list(x.spatial_shape)
        out_shape = shape if is_submanifold else self._out_shape(shape)
        if not len(x.indices):
            none = x.indices.new_zeros(0, dtype=torch.int64)
            pairs = [none] * self.conv.weight.flatten(1, 3).shape[1]
            return Rulebook(self._settings(), pairs, pairs, x.indices, shape, x.indices, out_shape)

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
            subm=is_submanifold,
            transpose=False,
        )
        lengths = counts.tolist()
        source = [pairs[0, k, :n].long() for k, n in enumerate(lengths)]
        target = [pairs[1, k, :n].long() for k, n in enumerate(lengths)]
        if is_submanifold:
            # spconv stores half of the kernel; the other half mirrors it around the center
            half = len(source) // 2
            rows = torch.arange(len(x.indices))
            first_in, first_out = source[:half], target[:half]
            source = [*first_in, rows, *reversed(first_out)]
            target = [*first_out, rows, *reversed(first_in)]
        return Rulebook(self._settings(), source, target, x.indices, shape, out_indices, out_shape)

    def _out_shape(self, shape: list[int]) -> list[int]:
        axes = zip(shape, self.kernel_size, self.stride, self.padding)
        return [(size + 2 * pad - kernel) // step + 1 for size, kernel, step, pad in axes]


def dense_bev(x: SparseConvTensor) -> Tensor:
    """Scatter voxels to a BEV feature map, with zeros where no voxel is active.

    The map is channels-last in memory, which 2D convolutions prefer and which needs no
    transposition here.

    Args:
        x: N voxels of C channels.
    Returns:
        [B, Z C, Y, X], the C channels of the lowest slice first.
    """
    z, y, x_size = x.spatial_shape
    batch, iz, iy, ix = x.indices.long().unbind(1)
    cell = ((batch * y + iy) * x_size + ix) * z + iz

    cells = x.batch_size * y * x_size * z
    flat = x.features.new_zeros(cells, x.features.shape[1])
    flat = flat.index_copy(0, cell, x.features)
    return flat.view(x.batch_size, y, x_size, -1).permute(0, 3, 1, 2)


def _triple(value: int | Sequence[int]) -> list[int]:
    if isinstance(value, int):
        return [value] * 3
    return [int(v) for v in value]


class _Plain:
    """Switches off what spconv's and mmdet3d's modules do on their own; runs on CUDA only."""

    # mmdet3d patches in a loader that permutes weights saved without a version number; these are
    # loaded as saved
    _load_from_state_dict = nn.Module._load_from_state_dict

    weight: Tensor
    bias: Tensor | None
    _conv_forward: Callable[..., SparseConvTensor]

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        # always as in training: spconv's inference path has no gradient and ignores autocast
        return self._conv_forward(True, x, self.weight, self.bias)


class _SubMConv3d(_Plain, spconv.SubMConv3d):
    pass


class _SparseConv3d(_Plain, spconv.SparseConv3d):
    pass


class _SparseInverseConv3d(_Plain, spconv.SparseInverseConv3d):
    pass
