"""The benchmark of a stream: simulated frames, stacked sweeps, and what is timed."""

import copy

import numpy as np
import pytest
import torch
from mmengine.config import Config

import stratified3d.plugin  # noqa: F401  (registers the parts of configs)

# isort: split
from benchmarks.ablation.costs import stream_ms
from benchmarks.ablation.recipes import one_sweep, remember_sweeps
from benchmarks.ablation.runs import CONFIG
from benchmarks.detectors.streaming import render, run, simulate_stream, stack_sweeps

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def config():
    config = Config.fromfile(CONFIG)
    small = dict(
        voxel_size=(1.2, 1.2, 1.0),
        encoder=dict(channels=16),
        backbone=dict(channels=(16, 16, 16), depths=(1, 1, 1)),
    )
    config.merge_from_dict(dict(model=small))
    return config


def test_stacked_sweeps_agree_where_the_ground_is():
    frames = simulate_stream(3, every=4)
    assert [frame.time for frame in frames] == pytest.approx([0, 0.2, 0.4])
    assert np.linalg.norm(frames[2].pose[:3, 3] - frames[0].pose[:3, 3]) > 0.5
    stacked = stack_sweeps(frames)
    ages = stacked.points[:, 4].unique()
    torch.testing.assert_close(ages, torch.tensor([0.0, 0.2, 0.4]))
    assert len(stacked.points) == sum(len(frame.points) for frame in frames)
    own = stacked.points[stacked.points[:, 4] == 0]
    torch.testing.assert_close(own, frames[-1].points, atol=1e-3, rtol=1e-4)


def test_table_compares_memory_with_stacked_sweeps(config):
    result = run(config, torch.device('cpu'), torch.float32, runs=2, memory=2, every=1)
    names = [row['name'] for row in result['rows']]
    assert names == ['one sweep', 'one sweep, memory of 2', '3 sweeps stacked']
    assert result['rows'][-1]['ratio'].median == 1 and len(render(result).splitlines()) == 7
    with pytest.raises(ValueError, match='at least 1'):
        run(config, torch.device('cpu'), torch.float32, runs=0)


def test_streams_of_the_ablation_see_what_a_row_loads(config, monkeypatch):
    seen = []

    def watch(frames):
        seen.append(len(frames))
        return stack_sweeps(frames)

    monkeypatch.setattr('benchmarks.ablation.costs.stack_sweeps', watch)
    for change, longest in ((None, 5), (one_sweep, 1), (remember_sweeps, 1)):
        own = copy.deepcopy(config)
        if change is remember_sweeps:
            change(own, 4)
        elif change is not None:
            change(own)
        seen.clear()
        assert stream_ms(own, frames=1) > 0 and max(seen) == longest
