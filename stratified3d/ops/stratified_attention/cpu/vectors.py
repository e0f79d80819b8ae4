"""Vector instructions for the kernels: parts of their inner loops, written in LLVM's language.

LLVM keeps the vectors of a loop in registers and translates them to the instructions of the machine
(AVX2, AVX-512, NEON), whatever their length. Addresses are those of arrays of fp32; steps between
rows and columns are in bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_F32 = ir.FloatType()
_I32 = ir.IntType(32)
_I64 = ir.IntType(64)
# exp(x) = 2^k exp(r) with |r| <= log(2) / 2, where this polynomial has a relative error of 1e-7
# (Cephes mathematical library, expf); log(2) in two parts, of which the first has few digits
_LOG2_E = 1 / math.log(2)
_LN2_HIGH = 0.693359375
_LN2_LOW = -2.12194440e-4
_EXP_COEFFICIENTS = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
    1.0,
    1.0,
)
_LOWEST_EXPONENT = -87.0  # below, exp is 0 here


class Vectors:
    """Builds instructions on vectors of some lanes.

    Args:
        builder: of the function that is being compiled.
        lanes: numbers in a vector.
    """

    def __init__(self, builder: ir.IRBuilder, lanes: int):
        self.builder = builder
        self.lanes = lanes
        self.type = ir.VectorType(_F32, lanes)
        self.int_type = ir.VectorType(_I32, lanes)

    def constant(self, value: float) -> ir.Constant:
        return ir.Constant(self.type, [value] * self.lanes)

    def pointer(self, base: ir.Value, offset: ir.Value, kind: ir.Type) -> ir.Value:
        """Pointer to what lies at an offset from an address, both in bytes."""
        return self.builder.inttoptr(self.builder.add(base, offset), kind.as_pointer())

    def load(self, base: ir.Value, offset: ir.Value) -> ir.Value:
        value = self.builder.load(self.pointer(base, offset, self.type))
        value.align = 4
        return value

    def store(self, value: ir.Value, base: ir.Value, offset: ir.Value) -> None:
        self.builder.store(value, self.pointer(base, offset, self.type)).align = 4

    def load_splat(self, base: ir.Value, offset: ir.Value) -> ir.Value:
        """The number at an offset, in every lane."""
        number = self.builder.load(self.pointer(base, offset, _F32))
        undefined = ir.Constant(self.type, ir.Undefined)
        vector = self.builder.insert_element(undefined, number, ir.Constant(_I32, 0))
        first = ir.Constant(self.int_type, [0] * self.lanes)
        return self.builder.shuffle_vector(vector, undefined, first)

    def load_sum(
        self, base: ir.Value, offset: ir.Value, numbers: ir.Value, index: ir.Value
    ) -> ir.Value:
        """The vector at an offset plus one of the numbers, in every lane."""
        size = ir.Constant(_I64, 4)
        number = self.load_splat(numbers, self.builder.mul(index, size))
        return self.builder.fadd(self.load(base, offset), number)

    def call(self, name: str, *values: ir.Value) -> ir.Value:
        """Result of one of LLVM's functions on vectors."""
        kind = ir.FunctionType(self.type, [self.type] * len(values))
        name = f'llvm.{name}.v{self.lanes}f32'
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, values)

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """a b + c."""
        return self.call('fma', a, b, c)

    def exp(self, x: ir.Value) -> ir.Value:
        """exp of every lane; NaN stays NaN."""
        lowest = self.constant(_LOWEST_EXPONENT)
        is_zero = self.builder.fcmp_ordered('<', x, lowest)
        x = self.builder.select(is_zero, lowest, x)

        k = self.fma(x, self.constant(_LOG2_E), self.constant(0.5))
        k = self.call('floor', k)
        r = self.fma(k, self.constant(-_LN2_HIGH), x)
        r = self.fma(k, self.constant(-_LN2_LOW), r)
        polynomial = self.constant(_EXP_COEFFICIENTS[0])
        for coefficient in _EXP_COEFFICIENTS[1:]:
            polynomial = self.fma(polynomial, r, self.constant(coefficient))

        result = self.builder.fmul(polynomial, self._power_of_two(k))
        return self.builder.select(is_zero, self.constant(0.0), result)

    def _power_of_two(self, k: ir.Value) -> ir.Value:
        """2^k of whole numbers k: k + 127 is the exponent, above 23 bits of mantissa."""
        bias = ir.Constant(self.int_type, [127] * self.lanes)
        mantissa = ir.Constant(self.int_type, [23] * self.lanes)
        integer = self.builder.fptosi(k, self.int_type)
        exponent = self.builder.add(integer, bias)
        bits = self.builder.shl(exponent, mantissa)
        return self.builder.bitcast(bits, self.type)

    def loop(
        self,
        count: ir.Value,
        carried: list[ir.Value],
        body: Callable[[ir.Value, list[ir.Value]], list[ir.Value]],
    ) -> list[ir.Value]:
        """Run body(i, carried) -> carried for i from 0 to count - 1; returns the last carried."""
        builder = self.builder
        entry = builder.block
        head = builder.append_basic_block('head')
        inside = builder.append_basic_block('inside')
        after = builder.append_basic_block('after')
        builder.branch(head)

        builder.position_at_end(head)
        i = builder.phi(_I64)
        i.add_incoming(ir.Constant(_I64, 0), entry)
        values = []
        for value in carried:
            phi = builder.phi(value.type)
            phi.add_incoming(value, entry)
            values.append(phi)
        builder.cbranch(builder.icmp_signed('<', i, count), inside, after)

        builder.position_at_end(inside)
        changed = body(i, values)
        i.add_incoming(builder.add(i, ir.Constant(_I64, 1)), builder.block)
        for phi, value in zip(values, changed):
            phi.add_incoming(value, builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        return values


def tile_product(rows: int, lanes: int) -> Any:
    """Return a function for compiled code that multiplies matrices of few rows and columns.

    f(a, a_row, a_step, b, b_step, count, c, c_row, replace) computes C[i, j] = sum over s < count
    of A[i, s] B[s, j] for i < rows, j < lanes, or adds it to C where `replace` is false. A[i, s] is
    the number at a + i a_row + s a_step, B[s, j] that at b + s b_step + 4 j, C[i, j] that at
    c + i c_row + 4 j.
    """

    def build(builder, a, a_row, a_step, b, b_step, count, c, c_row, replace):
        vectors = Vectors(builder, lanes)
        numbers = [ir.Constant(_I64, i) for i in range(rows)]
        a_rows = [builder.mul(a_row, i) for i in numbers]

        def add(s, sums):
            row_of_b = vectors.load(b, builder.mul(s, b_step))
            column = builder.mul(s, a_step)
            changed = []
            for row, total in zip(a_rows, sums):
                number = vectors.load_splat(a, builder.add(row, column))
                changed.append(vectors.fma(number, row_of_b, total))
            return changed

        sums = vectors.loop(count, [vectors.constant(0.0)] * rows, add)
        c_rows = [builder.mul(c_row, i) for i in numbers]
        with builder.if_else(replace) as (then, otherwise):
            with then:
                for total, row in zip(sums, c_rows):
                    vectors.store(total, c, row)
            with otherwise:
                for total, row in zip(sums, c_rows):
                    before = vectors.load(c, row)
                    vectors.store(builder.fadd(before, total), c, row)

    @intrinsic
    def function(typingctx, a, a_row, a_step, b, b_step, count, c, c_row, replace):
        signature = types.void(*[types.int64] * 8, types.boolean)
        return signature, _code(build)

    return function


def softmax_columns(lanes: int, stride: int) -> Any:
    """Return a function for compiled code that turns columns of logits into weights.

    f(logits, bias, count, highest, total): logits [count, lanes], with rows that are `stride`
    numbers apart, become exp(logits + bias - highest), where bias [count] belongs to the rows and
    highest [lanes] is the maximum of a column; total [lanes] is the sum of its weights.
    """

    def build(builder, logits, bias, count, highest, total):
        vectors = Vectors(builder, lanes)
        step = ir.Constant(_I64, 4 * stride)

        def add_bias(i, carried):
            offset = builder.mul(i, step)
            x = vectors.load_sum(logits, offset, bias, i)
            vectors.store(x, logits, offset)
            is_higher = builder.fcmp_ordered('>', x, carried[0])
            return [builder.select(is_higher, x, carried[0])]

        (maximum,) = vectors.loop(count, [vectors.constant(-math.inf)], add_bias)

        def exponentiate(i, carried):
            offset = builder.mul(i, step)
            x = vectors.load(logits, offset)
            weight = vectors.exp(builder.fsub(x, maximum))
            vectors.store(weight, logits, offset)
            return [builder.fadd(carried[0], weight)]

        (sums,) = vectors.loop(count, [vectors.constant(0.0)], exponentiate)
        first = ir.Constant(_I64, 0)
        vectors.store(maximum, highest, first)
        vectors.store(sums, total, first)

    @intrinsic
    def function(typingctx, logits, bias, count, highest, total):
        return types.void(*[types.int64] * 5), _code(build)

    return function


def softmax_gradient_columns(lanes: int, stride: int) -> Any:
    """Return a function for compiled code that takes gradients of weights to those of logits.

    f(logits, gradients, bias, lse, delta, count): logits [count, lanes] become the weights
    exp(logits + bias - lse), and the gradients of the weights [count, lanes] those of the logits,
    weight (gradient - delta), with lse and delta [lanes] of the columns; see `softmax_columns`.
    """

    def build(builder, logits, gradients, bias, lse, delta, count):
        vectors = Vectors(builder, lanes)
        step = ir.Constant(_I64, 4 * stride)
        first = ir.Constant(_I64, 0)
        lse_of_column = vectors.load(lse, first)
        delta_of_column = vectors.load(delta, first)

        def differentiate(i, carried):
            offset = builder.mul(i, step)
            x = vectors.load_sum(logits, offset, bias, i)
            weight = vectors.exp(builder.fsub(x, lse_of_column))
            vectors.store(weight, logits, offset)
            gradient = vectors.load(gradients, offset)
            gradient = builder.fsub(gradient, delta_of_column)
            vectors.store(builder.fmul(weight, gradient), gradients, offset)
            return []

        vectors.loop(count, [], differentiate)

    @intrinsic
    def function(typingctx, logits, gradients, bias, lse, delta, count):
        return types.void(*[types.int64] * 6), _code(build)

    return function


def _code(build: Callable[..., None]) -> Callable:
    """What numba calls to compile an intrinsic, whose instructions build(builder, *arguments)
    writes."""

    def write(context, builder, signature, arguments):
        build(builder, *arguments)
        return context.get_dummy_value()

    return write
