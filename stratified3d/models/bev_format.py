"""Dtype and memory layout in which convolutions on the BEV feature map are fastest."""

from __future__ import annotations

import torch

# any of these multiplies bfloat16 at twice the rate of fp32 or faster
_BF16_UNITS = ('amx_bf16', 'avx512_bf16')


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 faster than fp32.

    These are CUDA devices from compute capability 8 on and CPUs with AMX or AVX-512's bf16
    products. Without those, bf16 is emulated: ten times slower than fp32.
    """
    if device.type == 'cuda':
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return device.type == 'cpu' and any(capabilities.get(unit) for unit in _BF16_UNITS)


def fast_memory_format() -> torch.memory_format:
    """Return the memory layout of BEV feature maps for this machine.

    It is channels-last, except on CPUs without AVX-512: there oneDNN computes the gradients of
    channels-last convolutions by a slow path. Milliseconds forward / backward of 3x3 convolutions,
    64 to 64 channels on 2 x 135 x 135 cells, on two cores: AVX2 28 / 53 contiguous, 22 / 105
    channels-last; AVX-512 24 / 18 contiguous, 12 / 40 channels-last (192 to 64 channels: 66 / 179
    and 54 / 294; 38 / 87 and 36 / 96); in bf16 by AVX-512 8 / 16 and 7 / 14.
    """
    capabilities = torch.cpu.get_capabilities()
    is_slow = capabilities.get('avx2') and not capabilities.get('avx512_f')
    if is_slow and not torch.cuda.is_available():
        return torch.contiguous_format
    return torch.channels_last
