"""mmdet3d's sparse convolutions on a CPU, where spconv is wrong with more than one thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from spconv.pytorch.conv import SparseConvolution

from stratified3d.layers.sparse_conv import SparseConv


def same_in_torch(conv: SparseConvolution) -> SparseConv:
    """The same convolution with the same weights, correct with any number of threads.

    It takes the pairs of voxels from spconv and computes the products with torch.
    """
    same = SparseConv(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        kind='submanifold' if conv.subm else 'strided',
        key=conv.indice_key,
        bias=conv.bias is not None,
    )
    same.conv.weight = conv.weight
    same.conv.bias = conv.bias
    return same


def on_one_thread(forward: Callable) -> Callable:
    """The same function, run on one thread of torch."""

    def run(*args: Any) -> Any:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return forward(*args)
        finally:
            torch.set_num_threads(threads)

    return run
