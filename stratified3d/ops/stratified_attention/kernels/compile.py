"""`python -m stratified3d.ops.stratified_attention.kernels.compile`: build all kernels for a GPU
that need not be there.

The host code runs on meta tensors; what it would launch is compiled instead, for sm_90, and the
shared memory, registers and spilled bytes that the assembler reports are printed.
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
from typing import NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stratified3d.ops.stratified_attention.kernels import launch

DTYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16, 'fp32': torch.float32}
# widths 8 and 24 are padded to 16 and 32
WIDTHS = (8, 16, 24, 32, 64, 128)
STRATA = (0, 8, 64, 128)
# of one multiprocessor of compute capability 9.0, bytes that a program may use
SHARED_LIMIT = 232448
_POINTERS = {
    torch.bfloat16: '*bf16',
    torch.float16: '*fp16',
    torch.float32: '*fp32',
    torch.int32: '*i32',
    torch.int64: '*i64',
}
EXAMPLES = """examples:
  python -m stratified3d.ops.stratified_attention.kernels.compile --dtypes bf16 --widths 32 --strata 64
"""


class Launch(NamedTuple):
    """kernel: the jit function; signature, constants, alignments: what triton.compile takes;
    options: warps, stages."""

    kernel: triton.JITFunction
    signature: dict[str, str]
    constants: dict[str, object]
    alignments: dict[tuple[int], list]
    options: dict[str, int]


class Usage(NamedTuple):
    """What a program of a compiled kernel uses: shared memory (bytes), registers a thread, bytes
    spilled a thread."""

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
    """What forward and backward of the three functions and the rotary embedding launch, distinct
    ones only."""
    launches = []

    def record(
        kernel,
        grid: tuple[int, ...],
        *arguments,
        num_warps: int = 4,
        num_stages: int = 2,
        **constants,
    ) -> None:
        signature, alignments = {}, {}
        for i, (name, value) in enumerate(zip(kernel.arg_names, arguments)):
            if value is None or (value == 1 if isinstance(value, int) else False):
                constants[name] = value
            elif isinstance(value, Tensor):
                signature[name] = _POINTERS[value.dtype]
            else:
                signature[name] = 'fp32' if isinstance(value, float) else 'i32'
            if (
                name in signature
                and (isinstance(value, Tensor) or value % 16 == 0)
                and not kernel.params[i].do_not_specialize
            ):
                alignments[(i,)] = [['tt.divisibility', 16]]
        signature = {name: signature.get(name, 'constexpr') for name in kernel.arg_names}
        launches.append(
            Launch(
                kernel,
                signature,
                constants,
                alignments,
                dict(num_warps=num_warps, num_stages=num_stages),
            )
        )

    def empty(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=kind, device='meta')

    q, k, v = empty(rows, 3, heads, width).unbind(1)
    tokens = [empty(batch, num_strata, heads, width) for _ in range(3)]
    start, end, offsets = (empty(n, kind=torch.int32) for n in (rows, rows, batch + 1))
    bias = empty(batch, num_strata, heads, kind=torch.float32)
    row_lse, token_lse = empty(rows, heads, kind=torch.float32), torch.empty_like(bias)
    strata = (*tokens[:2], bias) if num_strata else (None, None, None)
    tables = [empty(rows, width // 2, kind=torch.float32) for _ in range(2)]
    with mock.patch.object(launch, '_run', record):
        for back in (False, True):
            launch.rotate(q, *tables, back)
        windowed = (q, k, v, start, end, offsets, *strata)
        launch.attend(*windowed, 1.0)
        launch.attend_backward(torch.empty_like(q), *windowed, torch.empty_like(q), row_lse, 1.0)
        if num_strata:
            reading = (q, None, None, None, None, offsets, *strata)
            launch.attend(*reading, 1.0)
            launch.attend_backward(torch.empty_like(q), *reading, torch.empty_like(q), row_lse, 1.0)
            collecting = (tokens[0], k, v, offsets)
            launch.collect(*collecting, 1.0)
            launch.collect_backward(tokens[1], *collecting, tokens[2], token_lse, 1.0)
    return [x for i, x in enumerate(launches) if x not in launches[:i]]


def compile_launch(item: Launch, capability: int = 90) -> Usage:
    """Compile for a GPU of that compute capability.

    Raises:
        RuntimeError: Triton was loaded as an interpreter.
    """
    if not isinstance(item.kernel, triton.JITFunction):
        raise RuntimeError('TRITON_INTERPRET=1 is set: kernels cannot be compiled in this process')
    source = ASTSource(item.kernel, item.signature, item.constants, item.alignments)
    compiled = triton.compile(
        source, target=GPUTarget('cuda', capability, 32), options=item.options
    )
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(compiled.asm['cubin'])
        file.flush()
        tool = Path(triton.__file__).parent / 'backends/nvidia/bin/cuobjdump'
        report = subprocess.run(
            [tool, '--dump-resource-usage', file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack, local = (
        int(re.search(rf'\b{word}:(\d+)', report)[1]) for word in ('REG', 'STACK', 'LOCAL')
    )
    return Usage(compiled.metadata.shared, registers, stack + local)


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


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--dtypes', nargs='+', choices=DTYPES, default=list(DTYPES))
    parser.add_argument(
        '--widths', nargs='+', type=int, default=WIDTHS, help='D of a head, 1 to 128'
    )
    parser.add_argument('--strata', nargs='+', type=int, default=STRATA, help='M tokens a sample')
    args = parser.parse_args()
    if not all(1 <= width <= 128 for width in args.widths) or min(args.strata) < 0:
        parser.error('widths are 1 to 128, strata 0 or more')
    print(
        f'triton {triton.__version__}, sm_90; shared memory of a program at most {SHARED_LIMIT} bytes'
    )
    print(
        f'{"kernel":<33}{"dtype":>6}{"D":>5}{"M":>5}{"windows":>9}{"strata":>8}{"shared":>9}{"registers":>11}'
        f'{"spilled":>9}'
    )
    worst = Usage(0, 0, 0)
    for dtype, width, num_strata, item, usage in compile_all(args.dtypes, args.widths, args.strata):
        flags = [str(item.constants.get(name, '-')) for name in ('HAS_WINDOW', 'HAS_STRATA')]
        print(
            f'{item.kernel.__name__:<33}{dtype:>6}{width:>5}{num_strata:>5}{flags[0]:>9}{flags[1]:>8}'
            f'{usage.shared:>9}{usage.registers:>11}{usage.spilled:>9}',
            flush=True,
        )
        worst = Usage(*map(max, worst, usage))
    print(f'{"most":<66}{worst.shared:>9}{worst.registers:>11}{worst.spilled:>9}')
    return int(worst.shared > SHARED_LIMIT)


if __name__ == '__main__':
    sys.exit(main())
