"""`python -m stratified3d.ops.stratified_attention.kernels.compile`: compile all kernels for sm_90.

No GPU is needed. The host code runs on meta tensors; what it would launch is compiled instead, and
the shared memory, registers and spilled bytes that the assembler reports are printed.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stratified3d.ops.stratified_attention.kernels import launch, launch_backward

DTYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16, 'fp32': torch.float32}
# widths 8 and 24 are padded to 16 and 32
WIDTHS = (8, 16, 24, 32, 64, 128)
STRATA = (0, 8, 64, 128)
# bytes that a program may use on one multiprocessor of compute capability 9.0
SHARED_LIMIT = 232448
_POINTERS = {
    torch.bfloat16: '*bf16',
    torch.float16: '*fp16',
    torch.float32: '*fp32',
    torch.int32: '*i32',
    torch.int64: '*i64',
}
EXAMPLES = """examples:
  python -m stratified3d.ops.stratified_attention.kernels.compile --dtypes bf16 --widths 32
"""


class Launch(NamedTuple):
    """One specialization of a kernel.

    kernel: the jit function; signature, constants, alignments: what triton.compile takes; options:
    warps, stages.
    """

    kernel: triton.JITFunction
    signature: dict[str, str]
    constants: dict[str, Any]
    alignments: dict[tuple[int], list]
    options: dict[str, int]


class Usage(NamedTuple):
    """What a compiled kernel uses.

    shared: bytes of shared memory per program; registers, spilled: registers and spilled bytes per
    thread.
    """

    shared: int
    registers: int
    spilled: int


def record_launches(
    dtype: torch.dtype,
    width: int,
    num_strata: int,
    batch: int = 4,
    heads: int = 4,
    rows: int = 30000,
) -> list[Launch]:
    """Distinct launches of the three functions and the rotary embedding, forward and backward."""
    launches: list[Launch] = []

    def record(kernel, grid: tuple[int, ...], *arguments, **options) -> None:
        item = describe_launch(kernel, arguments, options)
        if item not in launches:
            launches.append(item)

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device='meta')

    q, k, v = empty(rows, 3, heads, width).unbind(1)
    grad, out = torch.empty_like(q), torch.empty_like(q)
    row_lse = empty(rows, heads, dtype=torch.float32)
    cos, sin = (empty(rows, width // 2, dtype=torch.float32) for _ in range(2))
    start, end = (empty(rows, dtype=torch.int32) for _ in range(2))
    offsets = empty(batch + 1, dtype=torch.int32)
    strata_q, strata_k, strata_v = (empty(batch, num_strata, heads, width) for _ in range(3))
    bias = empty(batch, num_strata, heads, dtype=torch.float32)
    strata: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None)
    if num_strata:
        strata = (strata_k, strata_v, bias)

    for back in (False, True):
        launch.rotate(q, cos, sin, back, run=record)
    attention = (q, k, v, start, end, offsets, *strata)
    launch.attend(*attention, 1.0, run=record)
    launch_backward.attend_backward(grad, *attention, out, row_lse, 1.0, run=record)
    if num_strata:
        reading = (q, None, None, None, None, offsets, *strata)
        launch.attend(*reading, 1.0, run=record)
        launch_backward.attend_backward(grad, *reading, out, row_lse, 1.0, run=record)
        collecting = (strata_q, k, v, offsets)
        launch.collect(*collecting, 1.0, run=record)
        tokens, token_lse = torch.empty_like(strata_q), torch.empty_like(bias)
        launch_backward.collect_backward(tokens, *collecting, tokens, token_lse, 1.0, run=record)
    return launches


def describe_launch(
    kernel: triton.JITFunction, arguments: Sequence[Any], options: dict[str, Any]
) -> Launch:
    """The specialization that Triton would compile for these arguments.

    Args:
        kernel: the jit function.
        arguments: its positional arguments: tensors, numbers or None.
        options: num_warps, num_stages and the kernel's constants.
    """
    constants = dict(options)
    num_warps = constants.pop('num_warps', 4)
    num_stages = constants.pop('num_stages', 2)
    signature = dict.fromkeys(kernel.arg_names, 'constexpr')
    alignments = {}
    for i, (name, value) in enumerate(zip(kernel.arg_names, arguments)):
        is_one = isinstance(value, int) and value == 1
        if value is None or is_one:
            constants[name] = value
            continue

        if isinstance(value, Tensor):
            signature[name] = _POINTERS[value.dtype]
        else:
            signature[name] = 'fp32' if isinstance(value, float) else 'i32'
        is_aligned = isinstance(value, Tensor) or value % 16 == 0
        if is_aligned and not kernel.params[i].do_not_specialize:
            alignments[(i,)] = [['tt.divisibility', 16]]
    return Launch(
        kernel, signature, constants, alignments, dict(num_warps=num_warps, num_stages=num_stages)
    )


def compile_launch(item: Launch, capability: int = 90) -> Usage:
    """Compile for a GPU of that compute capability.

    Raises:
        RuntimeError: Triton was loaded as an interpreter.
    """
    if not isinstance(item.kernel, triton.JITFunction):
        raise RuntimeError('TRITON_INTERPRET=1 is set: kernels cannot be compiled in this process')
    source = ASTSource(item.kernel, item.signature, item.constants, item.alignments)
    target = GPUTarget('cuda', capability, 32)
    compiled = triton.compile(source, target=target, options=item.options)

    numbers = _dump_usage(compiled.asm['cubin'])
    spilled = numbers['STACK'] + numbers['LOCAL']
    return Usage(compiled.metadata.shared, numbers['REG'], spilled)


def _dump_usage(cubin: bytes) -> dict[str, int]:
    """Numbers that cuobjdump prints for a compiled kernel: REG:40 STACK:0 SHARED:0 LOCAL:0 ..."""
    tool = Path(triton.__file__).parent / 'backends/nvidia/bin/cuobjdump'
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), '--dump-resource-usage', file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(number) for name, number in re.findall(r'\b([A-Z]+):(\d+)', report)}


def compile_all(
    dtypes: Sequence[str], widths: Sequence[int], strata: Sequence[int]
) -> Iterator[tuple[str, int, int, Launch, Usage]]:
    """Every specialization of every kernel, once: (dtype, D, M, launch, what it uses)."""
    done = []
    for dtype, width, num_strata in itertools.product(dtypes, widths, strata):
        for item in record_launches(DTYPES[dtype], width, num_strata):
            if item not in done:
                done.append(item)
                yield dtype, width, num_strata, item, compile_launch(item)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--dtypes', nargs='+', choices=DTYPES, default=list(DTYPES))
    parser.add_argument(
        '--widths', nargs='+', type=int, default=WIDTHS, help='D of a head, 1 to 128'
    )
    parser.add_argument('--strata', nargs='+', type=int, default=STRATA, help='M tokens per sample')
    args = parser.parse_args()
    if not all(1 <= width <= 128 for width in args.widths):
        parser.error(f'widths are 1 to 128, not {args.widths}')
    if min(args.strata) < 0:
        parser.error(f'strata are 0 or more, not {args.strata}')
    return args


def main() -> int:
    args = parse_args()
    print(
        f'triton {triton.__version__}, sm_90, at most {SHARED_LIMIT} B of shared memory per program'
    )
    print(
        f'{"kernel":<33}{"dtype":>6}{"D":>5}{"M":>5}{"windows":>9}{"strata":>8}'
        f'{"shared":>9}{"registers":>11}{"spilled":>9}'
    )
    most = Usage(0, 0, 0)
    for dtype, width, num_strata, item, usage in compile_all(args.dtypes, args.widths, args.strata):
        name = item.kernel.__name__
        windows, strata = (_is_given(item, argument) for argument in ('window_start', 'strata_k'))
        print(
            f'{name:<33}{dtype:>6}{width:>5}{num_strata:>5}{windows:>9}{strata:>8}'
            f'{usage.shared:>9}{usage.registers:>11}{usage.spilled:>9}',
            flush=True,
        )
        most = Usage(*map(max, most, usage))
    print(f'{"most":<66}{most.shared:>9}{most.registers:>11}{most.spilled:>9}')
    return int(most.shared > SHARED_LIMIT)


def _is_given(item: Launch, argument: str) -> str:
    """yes, no, or - for a kernel without this argument."""
    if argument not in item.signature:
        return '-'
    return 'no' if argument in item.constants else 'yes'


if __name__ == '__main__':
    sys.exit(main())
