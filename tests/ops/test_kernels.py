"""The Triton backend without a GPU: under Triton's interpreter, and compiled for sm_90."""

import os
import re
import subprocess
import sys

import pytest
import torch

from stratified3d import ops

pytestmark = pytest.mark.skipif(
    os.environ.get('TRITON_INTERPRET') == '1', reason='needs Triton as a compiler'
)
# a selection that takes a minute; all of it: TRITON_INTERPRET=1 pytest tests/ops -k "triton or
# test_kernel_operators"
COMPARED = 'empty_between or fewer_rows or window_over_grid'
SELECTED = (
    f'test_kernel_operators or triton and (equal_the_reference and ({COMPARED}) and not float16 '
    'or nan or absent)'
)


@pytest.mark.slow
def test_triton_backend_passes_its_tests_under_the_interpreter(root):
    """A process of its own: Triton is an interpreter or a compiler from its import on."""
    files = ['tests/ops/test_stratified_attention.py', 'tests/ops/test_kernel_operators.py']
    pytest_command = ['-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-k', SELECTED, *files]
    result = subprocess.run(
        [sys.executable, '-W', 'ignore', *pytest_command],
        cwd=root,
        env=os.environ | dict(TRITON_INTERPRET='1', OMP_NUM_THREADS='1'),
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    passed = int(re.search(r'(\d+) passed', result.stdout)[1])
    assert passed >= 30 and 'skipped' not in result.stdout.splitlines()[-1]


@pytest.mark.slow
def test_kernels_compile_without_a_gpu_and_spill_nothing():
    from stratified3d.ops.stratified_attention.kernels.compile import SHARED_LIMIT, compile_all

    names = set()
    for _, _, _, item, usage in compile_all(['bf16'], [32], [64]):
        names.add(item.kernel.__name__)
        assert usage.shared <= SHARED_LIMIT // 4 and usage.registers < 255 and not usage.spilled, (
            item
        )
    assert len(names) == 10


def test_table_of_kernels_contains_every_specialization():
    from stratified3d.ops.stratified_attention.kernels.compile import (
        DTYPES,
        STRATA,
        WIDTHS,
        record_launches,
    )

    for dtype in DTYPES.values():
        for width in WIDTHS:
            assert len({item.kernel.__name__ for item in record_launches(dtype, width, 64)}) == 10
            without = {item.kernel.__name__ for item in record_launches(dtype, width, STRATA[0])}
            assert without == {
                'rotate_kernel',
                'attend_kernel',
                'attend_backward_rows_kernel',
                'attend_backward_keys_kernel',
            }


@pytest.mark.skipif(torch.cuda.is_available(), reason='here it runs')
@pytest.mark.parametrize(
    'q, message',
    [
        (torch.empty(1, 1, 8), 'CUDA device, not cpu'),
        (torch.empty(1, 1, 8, dtype=torch.float64), 'not torch.float64'),
        (torch.empty(1, 1, 129), '1 to 128, not 129'),
    ],
)
def test_unsupported_reason_names_what_the_kernels_need(q, message):
    assert message in ops.unsupported_reason('triton', q)
    with pytest.raises(ValueError, match=message):
        ops.choose_backend('triton', q)
