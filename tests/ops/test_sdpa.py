import torch

from stratified3d.ops.stratified_attention.sdpa import _window_chunks


def test_sdpa_does_not_pad_windows_to_the_longest():
    lengths = torch.tensor([1, 5, 520, 530, 3000, 700])
    end = lengths.cumsum(0)
    start = (end - lengths).repeat_interleave(lengths)
    for chunk in _window_chunks(start.int(), end.repeat_interleave(lengths).int(), 96, 2):
        real = chunk.rows.numel() if chunk.real is None else len(chunk.real)
        assert chunk.rows.numel() <= 1.5 * real
