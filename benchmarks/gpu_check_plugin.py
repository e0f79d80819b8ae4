"""pytest plugin of `benchmarks.gpu_check`: record results as they come, and do without spconv."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import Tensor, nn


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--record', type=Path, help='JSON file of the results')


def pytest_configure(config: pytest.Config) -> None:
    if not is_installed('spconv'):
        sys.modules.update(make_placeholder())
    path = config.getoption('--record')
    if path and not hasattr(config, 'workerinput'):  # the workers of xdist report to this process
        config.pluginmanager.register(Recorder(path))


def is_installed(package: str) -> bool:
    """Whether a top-level package can be found."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


class Recorder:
    """Writes the outcome of every test to a JSON file, after each test.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.tests: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == 'call' or report.outcome != 'passed':
            self._add(report, seconds=round(report.duration, 3))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.outcome == 'failed':
            self._add(report)

    def _add(self, report: pytest.TestReport | pytest.CollectReport, **details: Any) -> None:
        test = dict(test=report.nodeid, outcome=report.outcome, **details)
        if report.outcome != 'passed':
            test['message'] = str(report.longrepr)[-1500:]
        self.tests.append(test)
        self.path.write_text(json.dumps(self.tests, indent=1) + '\n')


@dataclass
class SparseConvTensor:
    """Features [N, C] and indices [N, 4] of voxels, with the names that spconv gives them."""

    features: Tensor
    indices: Tensor
    spatial_shape: list[int]
    batch_size: int

    def replace_feature(self, features: Tensor) -> SparseConvTensor:
        return replace(self, features=features)


class MissingConvolution(nn.Module):
    """A convolution that needs spconv."""

    def __init__(self, *args: Any, **settings: Any):
        raise ModuleNotFoundError('sparse convolutions need spconv, which is not installed')


def make_placeholder() -> dict[str, ModuleType]:
    """Modules with what `stratified3d.layers.sparse_conv` imports from spconv.

    Blocks without convolutions run on them.
    """
    spconv = ModuleType('spconv')
    core = ModuleType('spconv.core')
    core.__dict__.update(ConvAlgo=None)
    constants = ModuleType('spconv.constants')
    pytorch = ModuleType('spconv.pytorch')
    pytorch.__dict__.update(
        ops=None,
        SparseConvTensor=SparseConvTensor,
        SubMConv3d=MissingConvolution,
        SparseConv3d=MissingConvolution,
        SparseInverseConv3d=MissingConvolution,
    )
    parts = dict(core=core, constants=constants, pytorch=pytorch)
    spconv.__dict__.update(parts)
    return {'spconv': spconv, **{f'spconv.{name}': part for name, part in parts.items()}}
