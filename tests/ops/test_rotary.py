import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stratified3d.ops import apply_rotary, rotary_angles


@settings(deadline=None, max_examples=30)
@given(width=st.integers(6, 40), seed=st.integers(0, 99))
def test_rotary_products_depend_on_the_difference_of_positions_only(width, seed):
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 7, 2, width, generator=generator, dtype=torch.float64).unbind(0)
    first, second = (torch.randn(2, 7, 3, generator=generator, dtype=torch.float64) * 20).unbind(0)
    move = torch.randn(3, generator=generator, dtype=torch.float64) * 30
    products = []
    for offset in (0, move):
        a = apply_rotary(q, *rotary_angles(first + offset, width))
        b = apply_rotary(k, *rotary_angles(second + offset, width))
        products.append((a * b).sum(-1))
    torch.testing.assert_close(products[0], products[1])
    torch.testing.assert_close(a.norm(dim=-1), q.norm(dim=-1))  # a rotation keeps lengths


def test_rotary_angles_follow_their_definition():
    positions = torch.tensor([[3.0, -2.0, 0.5]])
    cos, sin = rotary_angles(positions, 20, min_wavelength=2.0, max_wavelength=32.0)
    wavelengths = [2.0, 8.0, 32.0]
    expected = [2 * math.pi * p / w for p in positions[0].tolist() for w in wavelengths]
    left = [0.0]  # the pair that three even parts leave over
    torch.testing.assert_close(cos[0], torch.tensor(expected + left).cos(), atol=1e-5, rtol=0)
    torch.testing.assert_close(sin[0], torch.tensor(expected + left).sin(), atol=1e-5, rtol=0)
    x = torch.randn(1, 1, 20)
    rotated = apply_rotary(x, cos, sin)
    assert torch.equal(rotated[..., 18:], x[..., 18:])
    a, b = x[0, 0, 2:4].tolist()
    assert rotated[0, 0, 2].item() == pytest.approx(
        a * math.cos(expected[1]) - b * math.sin(expected[1]), abs=1e-5
    )


@pytest.mark.parametrize(
    'channels', [slice(None), slice(1, None), slice(None, None, 2)], ids=['first', 'odd', 'apart']
)
@pytest.mark.parametrize('width', [1, 7, 13, 32])
def test_apply_rotary_takes_rows_of_any_layout(width, channels):
    """Slices of a projection, odd widths and offsets, tables narrower than the heads, against the
    definition."""
    torch.manual_seed(0)
    rows = torch.randn(5, 3, 2, 2 * width + 1, dtype=torch.float64, requires_grad=True)
    cos, sin = torch.randn(
        2, 5, width // 3, dtype=torch.float64
    )  # any linear map of the pairs will do
    q = rows[:, 1, :, channels][..., :width]
    expected = [*q.unbind(-1)]
    for i, (c, s) in enumerate(zip(cos.T, sin.T)):
        even, odd = q[..., 2 * i], q[..., 2 * i + 1]
        expected[2 * i : 2 * i + 2] = (
            even * c[:, None] - odd * s[:, None],
            even * s[:, None] + odd * c[:, None],
        )
    expected = torch.stack(expected, -1)
    torch.testing.assert_close(apply_rotary(q, cos, sin), expected)
    weight = torch.randn_like(expected)
    found, wanted = (
        torch.autograd.grad(out, rows, weight, retain_graph=True)[0]
        for out in (apply_rotary(q, cos, sin), expected)
    )
    torch.testing.assert_close(found, wanted)


def test_apply_rotary_keeps_half_precision_and_fp32_angles():
    positions = torch.tensor([[53.9, -53.9, 2.9]])
    cos, sin = rotary_angles(positions.half(), 32)
    assert cos.dtype == torch.float32
    x = torch.randn(1, 2, 32)
    for dtype in (torch.bfloat16, torch.float16):
        rotated = apply_rotary(x.to(dtype), cos, sin)
        assert rotated.dtype == dtype
        torch.testing.assert_close(rotated, apply_rotary(x.to(dtype).float(), cos, sin).to(dtype))
        # tables in half precision are poor angles, but no error
        assert apply_rotary(x.to(dtype), cos.to(dtype), sin.to(dtype)).dtype == dtype


def test_rotary_embedding_refuses_bad_input():
    with pytest.raises(ValueError, match=r'positions .* not \(4, 2\)'):
        rotary_angles(torch.zeros(4, 2), 32)
    with pytest.raises(ValueError, match='0 < 2.0 <= 1.0'):
        rotary_angles(torch.zeros(4, 3), 32, min_wavelength=2.0, max_wavelength=1.0)
    with pytest.raises(ValueError, match='32 channels .* width 16'):
        apply_rotary(torch.zeros(4, 1, 16), *rotary_angles(torch.zeros(4, 3), 32))
    with pytest.raises(ValueError, match=r'cos \(1, 8\) .* \(4,\)'):
        apply_rotary(torch.zeros(4, 1, 16), *rotary_angles(torch.zeros(1, 3), 16))


@pytest.mark.parametrize('width', [12, 20])
def test_traced_rotation_equals_the_eager_one(width):
    x = torch.randn(7, 2, width)
    tables = rotary_angles(torch.randn(7, 3) * 20, width)
    traced = torch.compile(apply_rotary, backend='eager')(x, *tables)
    torch.testing.assert_close(traced, apply_rotary(x, *tables), rtol=1e-6, atol=1e-6)
