"""Two processes over gloo, activation checkpointing and gradient accumulation against one plain
process."""

import copy
import traceback

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch import distributed, multiprocessing

pytestmark = pytest.mark.slow

PROCESSES = 2


def losses_and_gradients(model, inputs, samples):
    """Loss by name and gradient by parameter, with frozen batch norm."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    model.zero_grad()
    losses = model(inputs, samples, mode='loss')
    sum(losses.values()).backward()
    bare = getattr(model, 'module', model)
    return (
        {name: loss.item() for name, loss in losses.items()},
        {name: parameter.grad.clone() for name, parameter in bare.named_parameters()},
    )


def assert_close(gradients, truth):
    for name, value in truth.items():
        error = (gradients[name] - value).abs().max() / value.abs().max().clamp(min=1)
        assert error < 1e-5, f'{name}: {error}'


@pytest.fixture
def halves(batch):
    """Four clouds with boxes, one of them empty, dealt to two processes."""
    inputs, samples = batch((700, 0, 500, 300), num_boxes=12)
    for sample in samples[2:]:  # the halves count different numbers of objects
        sample.gt_instances_3d = sample.gt_instances_3d[:3]
    parts = [(dict(points=inputs['points'][i : i + 2]), samples[i : i + 2]) for i in (0, 2)]
    return [*parts, (inputs, samples)]


def run_processes(model, halves, store):
    """What every process finds with its half of the batch under DistributedDataParallel."""

    def process(rank):
        try:
            torch.set_num_threads(1)
            distributed.init_process_group(
                'gloo', init_method=f'file://{store}', rank=rank, world_size=PROCESSES
            )
            wrapped = MMDistributedDataParallel(
                module=copy.deepcopy(model), broadcast_buffers=False
            )
            torch.save(losses_and_gradients(wrapped, *halves[rank]), f'{store}.{rank}')
            distributed.destroy_process_group()
        except Exception:  # a forked test must not go on as pytest
            traceback.print_exc()
            raise

    multiprocessing.start_processes(process, nprocs=PROCESSES, start_method='fork')
    return [torch.load(f'{store}.{rank}') for rank in range(PROCESSES)]


def test_two_processes_agree_on_clips(clip_config, build, clip_batch, tmp_path):
    """One process has no earlier frame at all: both run equally often, all parameters take part."""
    model = build(clip_config)
    halves = [
        clip_batch((700, 300), ages=((0.05, 0.1),), num_boxes=12),
        clip_batch((500, 0), ages=((),), num_boxes=12),
    ]
    alone = [losses_and_gradients(model, *half) for half in halves]
    together = run_processes(model, halves, tmp_path / 'store')
    mean = {name: (value + alone[1][1][name]) / 2 for name, value in alone[0][1].items()}
    for _, gradients in together:
        assert_close(gradients, mean)
    assert any(gradient.any() for name, gradient in mean.items() if 'memory.offset' in name)


@pytest.mark.parametrize('selection', ['pool', 'topk'])
def test_two_processes_do_what_one_does(small_config, build, halves, tmp_path, selection):
    small_config['encoder']['mixer'].update(selection=selection)
    model = build(small_config)
    alone = [losses_and_gradients(model, *half) for half in halves[:2]]
    together = run_processes(model, halves, tmp_path / 'store')
    mean = {name: (value + alone[1][1][name]) / 2 for name, value in alone[0][1].items()}
    for (loss, gradients), (own_loss, _) in zip(together, alone):
        assert loss == pytest.approx(own_loss, rel=1e-6)
        assert_close(gradients, mean)
    assert alone[0][0] != alone[1][0]


def test_losses_averaged_over_processes_are_those_of_the_whole_batch(
    small_config, build, halves, tmp_path
):
    """Unless asked to, the processes average over their own objects, which is something else."""
    small_config['head']['sync_avg_factor'] = True
    model = build(small_config)
    loss, gradients = losses_and_gradients(model, *halves[2])
    together = run_processes(model, halves, tmp_path / 'store')
    assert_close(together[0][1], gradients)
    for name, value in loss.items():
        assert (together[0][0][name] + together[1][0][name]) / 2 == pytest.approx(
            value, rel=2e-4, abs=1e-6
        )
    small_config['head']['sync_avg_factor'] = False
    mean = [losses_and_gradients(build(small_config), *half)[1] for half in halves[:2]]
    apart = max(
        ((a + b) / 2 - gradients[name]).abs().max()
        for name, a, b in zip(mean[0], *(m.values() for m in mean))
    )
    assert apart > 1e-3


@pytest.mark.parametrize('selection', ['pool', 'random', 'topk'])
def test_activation_checkpointing_gives_the_same_gradients(small_config, build, halves, selection):
    found = []
    for with_cp in (False, True):
        small_config['encoder'].update(with_cp=with_cp)
        small_config['encoder']['mixer'].update(selection=selection)
        model = build(small_config)
        torch.manual_seed(5)
        found.append(losses_and_gradients(model, *halves[2]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert_close(found[1][1], found[0][1])


def test_accumulated_gradients_are_the_mean_of_the_steps(small_config, build, halves):
    model = build(small_config)
    truth = [losses_and_gradients(model, *half)[1] for half in halves[:2]]
    model.zero_grad()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0), accumulative_counts=2)
    wrapper.initialize_count_status(model, 0, 2)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for i, half in enumerate(halves[:2]):
        with wrapper.optim_context(model):
            loss = sum(model(*half, mode='loss').values())
        wrapper.update_params(loss)
        assert all(
            torch.equal(value, before[name]) for name, value in model.named_parameters()
        ) == (i == 0)
    steps = {name: before[name] - value for name, value in model.named_parameters()}
    assert_close(steps, {name: (value + truth[1][name]) / 2 for name, value in truth[0].items()})
