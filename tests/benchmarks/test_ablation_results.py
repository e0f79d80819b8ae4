"""What the ablation takes from its stored results, and where it keeps them."""

import json
import runpy

import pytest

import stratified3d.plugin  # noqa: F401  (registers the parts of configs)

# isort: split
from benchmarks import report
from benchmarks.ablation import runs
from benchmarks.ablation.rows import ROWS, Row
from benchmarks.ablation.runs import TrainingSettings, measure
from benchmarks.ablation.tables import render

WORLD = dict(version='v1.0-mini', sensor='nuscenes', seed=0)
ROW = Row('default', 'default', {'model.a': 1})


@pytest.fixture
def settings(tmp_path):
    """Of trainings on a simulated dataset that has its settings only."""
    (tmp_path / 'simulation.json').write_text(json.dumps(WORLD))
    return TrainingSettings(tmp_path, tmp_path / 'work', 20, 1)


@pytest.fixture
def environment(monkeypatch):
    """The machine and commit of results; change it to be on another one."""
    machine = dict(
        report.environment(report.torch.device('cpu'), report.torch.float32), commit='abc'
    )
    monkeypatch.setattr(report, 'environment', lambda device, dtype: machine)
    return machine


@pytest.fixture
def trained(monkeypatch):
    """Replaces trainings; a list of (row, steps, settings, whether it is scored)."""
    calls = []

    def train(row, seed, settings, iterations, score=True):
        calls.append((row.name, iterations, settings, score))
        pace = 2.0 if row.name == ROW.name else 4.0
        scores = dict(mAP=0.3, NDS=0.3, AP=dict(car=0.3), ms_per_frame=1.0) if score else {}
        return dict(seconds_per_iteration=pace, **scores)

    monkeypatch.setattr(runs, 'train', train)
    monkeypatch.setattr(runs, 'make_config', lambda *args: None)
    monkeypatch.setattr(runs, 'bev_gflop', lambda config: None)
    monkeypatch.setattr(runs, 'stream_ms', lambda config: None)
    return calls


@pytest.fixture
def load(root, tmp_path, environment):
    """Read the results of such trainings as the tool does at its start."""
    tool = runpy.run_path(str(root / 'tools/ablate.py'))
    return lambda settings, out=tmp_path: tool['Results'](out, settings, 'default')


def store(results, row, settings):
    results.add(row, 0, measure(row, 0, settings))


def test_rows_with_a_result_are_not_trained_again(load, settings, trained):
    store(load(settings), ROW, settings)
    results = load(settings)
    assert results.missing([ROW], [0, 1]) == [(ROW, 1)]
    for other in (ROW._replace(options={}), ROW._replace(change=print)):
        assert results.missing([other], [0]) == [(other, 0)]


def test_results_of_other_config_options_are_kept_apart(load, settings, trained):
    store(load(settings), ROW, settings)
    wide = settings._replace(options={'model.encoder.channels': 64})
    assert load(wide).missing([ROW], [0]) == [(ROW, 0)]
    store(load(wide), ROW, wide)
    assert load(wide).entries[0]['cfg_options'] == "{'model.encoder.channels': 64}"
    assert load(settings).entries[0]['cfg_options'] == '{}'
    assert not load(wide).missing([ROW], [0]) and not load(settings).missing([ROW], [0])


def test_results_of_another_dataset_are_refused(load, settings, trained, tmp_path):
    store(load(settings), ROW, settings)
    (tmp_path / 'simulation.json').write_text(json.dumps(dict(WORLD, seed=1)))
    with pytest.raises(ValueError, match='another dataset'):
        load(settings)


def test_results_without_dataset_and_change_count(load, settings, trained):
    results = load(settings)
    store(results, ROW, settings)
    path = results.folder / f'{results.name}.json'
    content = json.loads(path.read_text())
    for name in ('data', 'change', 'cfg_options'):
        del content['results'][0][name]
    path.write_text(json.dumps(content))
    assert not load(settings).missing([ROW], [0])


def test_results_of_uncommitted_changes_are_found_again(
    load, settings, trained, environment, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, 'RESULTS', tmp_path / 'results')
    environment['commit'] = 'abc-dirty'
    store(load(settings, report.RESULTS), ROW, settings)
    assert not report.RESULTS.exists()
    assert not load(settings, report.RESULTS).missing([ROW], [0])


def test_stored_results_can_be_read(root):
    for path in root.glob('benchmarks/results/*/ablation*.json'):
        entries = json.loads(path.read_text())['results']
        default = next(entry for entry in entries if entry['row'] == 'default')
        assert runs.is_result_of(ROWS[0], default) and '| default' in render(entries)


def test_results_of_other_sensors_are_kept_apart(settings, tmp_path):
    names = []
    for world in ({}, dict(sensor='nuscenes'), dict(sensor='mixed')):
        (tmp_path / 'simulation.json').write_text(json.dumps(world))
        names.append(runs.name_results(settings))
    assert names == ['ablation-20', 'ablation-20', 'ablation-20-mixed']


def test_rows_of_equal_time_are_paced_beside_the_default(settings, trained):
    settings = settings._replace(threads=3, jobs=2)
    row = Row('other', 'detector', {}, equal_time=True)
    entry = measure(row, 0, settings)
    assert entry['iterations'] == settings.iterations / 2  # its steps take twice as long
    assert (entry['threads'], entry['jobs']) == (3, 2)
    trials, (last, steps, *_) = trained[:2], trained[2]
    assert [name for name, *_ in trials] == ['default', 'other'] and (last, steps) == ('other', 10)
    for _, _, trial, is_scored in trials:
        # with the threads of the training, and away from the results of the default's own
        assert not is_scored and trial.threads == 3 and trial.work != settings.work
