import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.slow
def test_doctor_reports_versions_backends_and_right_results():
    result = subprocess.run(
        [sys.executable, '-m', 'stratified3d.doctor'], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for part in (
        'mmdet3d          1.4.0',
        'cpu     float32   numba',
        'reference: runs too, slower',
        'all imports work',
    ):
        assert part in result.stdout


@pytest.mark.slow
def test_doctor_finds_wrong_results(monkeypatch, capsys):
    from stratified3d import doctor
    from stratified3d.ops.stratified_attention import cpu

    right = cpu.stratified_attention
    monkeypatch.setattr(cpu, 'stratified_attention', lambda *a: right(*a) * 1.01)
    assert doctor.main() == 1
    assert 'FAILED cpu: attention differs' in capsys.readouterr().out
