"""Which steps `stratified3d quickstart` does again when some of what they made is gone."""

import pytest

from stratified3d.cli import quickstart

STEPS = ['simulate', 'prepare', 'train', 'test', 'draw']


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the steps by stubs that make what the real ones make -> those that were done, and the
    options of training; `run.broken` ends with an error."""
    data, out = tmp_path / 'data', tmp_path / 'out'
    made = {
        'simulate.py': (data / 'simulation.json',),
        'create_data.py': (data / 'nuscenes_infos_val.pkl',),
        'train.py': (out / 'epoch_2.pth',),
        'test.py': (out / quickstart.SCORES,),
        'visualize.py': (out / 'pictures/bev/frame.png',),
    }
    names = dict(zip(made, STEPS))
    done = []
    options = []

    def call(script, *arguments):
        if names[script] == run.broken:
            raise SystemExit(1)
        done.append(names[script])
        for path in made[script]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        if script == 'train.py':
            options[:] = map(str, arguments)
            (out / 'last_checkpoint').write_text(f'/elsewhere/{made[script][0].name}')
        if script in ('test.py', 'visualize.py'):
            assert arguments[1] == out / 'epoch_2.pth' and arguments[1].is_file()

    def run_steps(*arguments):
        done.clear()
        words = ['--data', str(data), '--out', str(out), *arguments]
        args = quickstart.make_parser('quickstart').parse_args(words)
        quickstart.run_steps(args, quickstart.Steps(out, {}), data, out)
        return done, options

    monkeypatch.setattr(quickstart, 'call', call)
    monkeypatch.setenv('NUSCENES_ROOT', '')  # the command sets it
    run = run_steps
    run.broken = None
    run.out = out
    return run


@pytest.mark.parametrize(
    'option, named',
    [
        ('--scenes=foo', "'foo' is neither"),
        ('--scenes=99+1', '99+1 scenes'),
        ('--scenes=2+0', 'one to score'),
        ('--cfg-options=train_cfg.max_epochs', 'takes KEY=VALUE'),
        ('--cfg-options=a=[1,2', 'a=[1,2'),
        ('--keyframes=1', '1 keyframes'),
    ],
)
def test_settings_that_cannot_be_are_not_recorded(tmp_path, capsys, option, named):
    with pytest.raises(SystemExit) as left:
        quickstart.main(['--out', str(tmp_path / 'out'), option], 'quickstart')
    assert left.value.code == 2 and named in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_nothing_is_done_twice(run):
    assert run()[0] == STEPS
    assert run()[0] == []


@pytest.mark.parametrize('gone', [['epoch_2.pth'], ['epoch_2.pth', 'last_checkpoint']])
def test_a_lost_checkpoint_is_trained_scored_and_drawn_again(run, gone):
    run()
    for name in gone:
        (run.out / name).unlink()
    done, options = run('--pretrained')
    assert done == ['train', 'test', 'draw']
    assert '--resume' not in options and any('load_from=' in option for option in options)


def test_interrupted_again_it_goes_on_with_what_is_outdated(run):
    run()
    (run.out / 'epoch_2.pth').unlink()
    run.broken = 'test'
    with pytest.raises(SystemExit):
        run()
    run.broken = None
    assert run()[0] == ['test', 'draw']


def test_training_that_is_interrupted_the_second_time_is_not_taken_for_finished(run):
    run()
    (run.out / 'epoch_2.pth').unlink()
    run.broken = 'train'
    with pytest.raises(SystemExit):
        run()
    (run.out / 'epoch_2.pth').touch()  # the interrupted one got that far
    run.broken = None
    done, options = run()
    assert done == ['train', 'test', 'draw'] and '--resume' in options
