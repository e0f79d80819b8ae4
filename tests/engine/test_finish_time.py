from types import SimpleNamespace

import pytest

from stratified3d.engine import finish_time
from stratified3d.engine.finish_time import FinishTimeHook, describe_end


@pytest.mark.parametrize('first', [0, 700])
def test_end_is_said_once_from_the_pace_of_the_first_steps(first, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(finish_time.time, 'monotonic', lambda: clock[0])
    messages = []
    runner = SimpleNamespace(
        iter=first, max_iters=first + 113, logger=SimpleNamespace(info=messages.append)
    )
    hook = FinishTimeHook(warmup=3, steps=10)
    hook.before_train(runner)
    for i in range(113):
        runner.iter = first + i
        clock[0] += 50.0 if i < 3 else 6.0  # the first steps compile
        hook.after_train_iter(runner, i)
    (message,) = messages
    assert '10 min' in message and '6.00 s per step' in message  # 100 steps are left


@pytest.mark.parametrize(
    'left, text', [(5, 'about 1 min'), (3599, 'about 1 h 0 min'), (3 * 86400 + 60, ' on ')]
)
def test_long_trainings_name_hours_and_the_day(left, text):
    assert text in describe_end(1.0, left, 1.8e9 + left)
