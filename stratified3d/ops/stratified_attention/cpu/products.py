"""Products of small matrices, from tiles that stay in registers."""

from __future__ import annotations

from stratified3d.jit import compiled
from stratified3d.ops.stratified_attention.cpu.vectors import tile_product

# eight vectors of sums: enough to keep two multipliers busy, and half the registers of AVX2
_tile_4x16 = tile_product(4, 16)
_tile_1x16 = tile_product(1, 16)
_tile_8x8 = tile_product(8, 8)
_tile_1x8 = tile_product(1, 8)


@compiled
def product(shape, a, b, c, replace):
    """C = A B if `replace` is true, else C += A B, for fp32 matrices somewhere in memory.

    They are given by addresses and not as arrays, whose slices would take as long as the product.

    Args:
        shape: (I, S, J) of A [I, S] and B [S, J]; J is a multiple of 8.
        a: address, bytes from a row to the next, and from a column to the next.
        b, c: address, bytes from a row to the next.
    """
    rows, count, columns = shape
    j = 0
    while j + 16 <= columns:
        at = 4 * j
        _multiply_16(rows, count, a, (b[0] + at, b[1]), (c[0] + at, c[1]), replace)
        j += 16
    if j < columns:
        at = 4 * j
        _multiply_8(rows, count, a, (b[0] + at, b[1]), (c[0] + at, c[1]), replace)


@compiled
def _multiply_16(rows, count, a, b, c, replace):
    """16 columns of `product`."""
    at_a, a_row, a_step = a
    at_b, b_step = b
    at_c, c_row = c
    i = 0
    while i + 4 <= rows:
        _tile_4x16(at_a, a_row, a_step, at_b, b_step, count, at_c, c_row, replace)
        at_a += 4 * a_row
        at_c += 4 * c_row
        i += 4
    while i < rows:
        _tile_1x16(at_a, a_row, a_step, at_b, b_step, count, at_c, c_row, replace)
        at_a += a_row
        at_c += c_row
        i += 1


@compiled
def _multiply_8(rows, count, a, b, c, replace):
    """8 columns of `product`."""
    at_a, a_row, a_step = a
    at_b, b_step = b
    at_c, c_row = c
    i = 0
    while i + 8 <= rows:
        _tile_8x8(at_a, a_row, a_step, at_b, b_step, count, at_c, c_row, replace)
        at_a += 8 * a_row
        at_c += 8 * c_row
        i += 8
    while i < rows:
        _tile_1x8(at_a, a_row, a_step, at_b, b_step, count, at_c, c_row, replace)
        at_a += a_row
        at_c += c_row
        i += 1
