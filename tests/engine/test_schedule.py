import pytest
import torch
from mmengine.config import Config
from mmengine.optim.scheduler import ConstantLR
from mmengine.registry import PARAM_SCHEDULERS

from stratified3d.engine.schedule import fit_schedule


def rates(schedulers, epochs, steps=10):
    """Learning rate of every step, as mmengine's runner sets it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    built = []
    for settings in schedulers:
        settings = dict(settings, optimizer=optimizer)
        if settings.get('convert_to_iter_based'):
            settings['epoch_length'] = steps
        built.append(PARAM_SCHEDULERS.build(settings))
    found = []
    for step in range(epochs * steps):
        found.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in built:
            if not scheduler.by_epoch or (step + 1) % steps == 0:
                scheduler.step()
    return found


@pytest.mark.parametrize('epochs', [1, 7, 30, 40])
def test_cyclic_schedule_of_twenty_epochs_follows_the_length_of_the_training(root, epochs):
    config = Config.fromfile(root / 'configs/_base_/schedules/cyclic_20e.py')
    schedulers = [s for s in config.param_scheduler if s.type == 'CosineAnnealingLR']
    fitted, before = fit_schedule(schedulers, epochs, 40)
    assert before == 20
    found, expected = rates(fitted, epochs, steps=40), rates(schedulers, 20, steps=40)
    assert found[-1] < 0.1 * max(found), 'it ends low'
    assert max(found) == pytest.approx(max(expected), rel=0.02)
    peak, expected_peak = found.index(max(found)) / len(found), expected.index(max(expected)) / 800
    assert peak == pytest.approx(expected_peak, abs=0.03), 'and rises for the same share of it'


def test_fitting_schedules_stay_as_they_are():
    schedulers = [dict(type='OneCycleLR', eta_max=1e-3, total_steps=8, by_epoch=True)]
    assert fit_schedule(schedulers, 8, 40) == (schedulers, None)


@pytest.mark.parametrize(
    'settings',
    [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=500),
        dict(type='ConstantLR', factor=1.0),
    ],
)
def test_what_counts_iterations_or_has_no_end_is_left_alone(settings):
    assert fit_schedule([settings], 30, 40) == ([settings], None)
    assert ConstantLR is PARAM_SCHEDULERS.get('ConstantLR')


def test_milestones_are_scaled_to_whole_epochs():
    settings = dict(type='MultiStepLR', milestones=[8, 11], end=12)
    (fitted,), before = fit_schedule([settings], 24, 40)
    assert before == 12 and fitted['milestones'] == [16, 22] and fitted['end'] == 24
    (fitted,), _ = fit_schedule([settings], 3, 40)
    assert fitted['milestones'] == [2, 3]


def test_parts_shorter_than_a_step_leave_the_schedule_as_it_is(root):
    config = Config.fromfile(root / 'configs/_base_/schedules/cyclic_20e.py')
    schedulers = list(config.param_scheduler)
    assert fit_schedule(schedulers, 1, steps=2) == (schedulers, None)
    assert fit_schedule(schedulers, 1, steps=20)[1] == 20


def test_whole_epochs_stay_whole_numbers():
    settings = dict(
        type='OneCycleLR', eta_max=1e-3, total_steps=8, by_epoch=True, convert_to_iter_based=True
    )
    (fitted,), before = fit_schedule([settings], 3, 40)
    assert before == 8 and fitted['total_steps'] == 3 and type(fitted['total_steps']) is int
