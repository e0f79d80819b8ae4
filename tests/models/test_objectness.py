"""The loss that teaches where objects are, against mmdet3d's boxes and by hand; in the detector."""

import pytest
import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from mmdet3d.structures.ops.box_np_ops import points_in_rbbox
from mmengine.structures import InstanceData

from stratified3d.layers.strata import VoxelScores
from stratified3d.models.objectness import objectness_loss, voxels_in_boxes

VOXEL = (0.4, 0.4, 0.5)


def random_boxes(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    unit = torch.rand(count, 9, generator=generator)
    return unit * torch.tensor([20, 20, 2, 5, 3, 2, 6.3, 1, 1]) - torch.tensor(
        [10, 10, 2, -0.5, -0.5, -0.5, 3.1, 0, 0]
    )


@pytest.mark.parametrize('count', [0, 1, 30])
def test_voxels_in_boxes_are_those_that_mmdet3d_finds(count):
    positions = torch.rand(3000, 3, generator=torch.Generator().manual_seed(1))
    positions = positions * torch.tensor([20.0, 20, 4]) - torch.tensor([10.0, 10, 2])
    boxes = random_boxes(count)
    grown = boxes.clone()
    grown[:, 3:6] += torch.tensor(VOXEL)
    grown[:, 2] -= VOXEL[2] / 2
    found = voxels_in_boxes(positions, boxes, VOXEL)
    assert found.shape == (3000,) and found.any() == (count > 0)
    theirs = points_in_rbbox(positions.numpy(), grown[:, :7].numpy(), origin=(0.5, 0.5, 0))
    assert found.tolist() == theirs.any(1).tolist()


def gt_of(*boxes):
    return [InstanceData(bboxes_3d=LiDARInstance3DBoxes(x, box_dim=9)) for x in boxes]


def test_loss_is_the_mean_cross_entropy_of_each_selection_with_its_weight():
    box = torch.tensor([[0.0, 0, 0, 2, 2, 2, 0, 0, 0]])
    positions = torch.tensor([[0.0, 0, 1], [5.0, 0, 1], [0.0, 0, 1]])
    logits = torch.tensor([2.0, -1.0, 0.5])
    # the last voxel lies where the first sample has its box, but belongs to the second
    sample = torch.tensor([0, 0, 1], dtype=torch.int32)
    scores = VoxelScores(logits, positions, sample, 3.0)
    wanted = -(logits[0].sigmoid().log() + (-logits[1]).sigmoid().log())
    wanted = (wanted - (-logits[2]).sigmoid().log()) / 3
    gt = gt_of(box, box[:0])
    torch.testing.assert_close(objectness_loss([(scores, VOXEL)], gt), 3 * wanted)
    half = scores._replace(weight=1.5)
    both = objectness_loss([(scores, VOXEL), (half, VOXEL)], gt)
    torch.testing.assert_close(both, 4.5 * wanted)


def test_without_voxels_the_loss_is_zero_with_a_gradient():
    logits = torch.zeros(0, requires_grad=True)
    scores = VoxelScores(logits, torch.zeros(0, 3), torch.zeros(0, dtype=torch.int32), 1.0)
    loss = objectness_loss([(scores, VOXEL)], gt_of(random_boxes(2), random_boxes(0)))
    loss.backward()
    assert loss == 0 and logits.grad is not None


@pytest.mark.parametrize('sizes', [(600, 400), (0, 500), (0, 0), (1,), (700,)])
@pytest.mark.parametrize('carry_tokens', [True, False])
def test_detector_learns_the_score(small_config, build, batch, sizes, carry_tokens):
    """On every kind of batch; only the loss of objectness reaches the score."""
    small_config['encoder']['mixer'].update(selection='topk', carry_tokens=carry_tokens)
    model = build(small_config)
    inputs, samples = batch(sizes, num_boxes=30)
    losses = model.loss(inputs, samples)
    objectness = losses.pop('loss_objectness')
    names = [
        name for name, _ in model.named_parameters() if name.endswith('selection.score.weight')
    ]
    assert len(names) == (2 if carry_tokens else 4)  # two stages of two blocks

    sum(losses.values()).backward(retain_graph=True)
    parameters = dict(model.named_parameters())
    assert all(parameters[name].grad is None for name in names)
    objectness.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters.values())
    if sum(sizes) > 1:
        assert objectness > 0 and all(parameters[name].grad.any() for name in names)


def test_score_finds_the_objects_after_some_steps(small_config, build, batch):
    """Points inside of boxes reflect more: so much a linear score has to see."""
    small_config['encoder']['mixer'].update(selection='topk')
    model = build(small_config)
    inputs, samples = batch((400, 400), num_boxes=5)
    for points, sample in zip(inputs['points'], samples):
        boxes = sample.gt_instances_3d.bboxes_3d.tensor
        points[:, 3] = 200.0 * voxels_in_boxes(points[:, :3], boxes, VOXEL)
    parameters = [*model.voxel_encoder.parameters(), *model.encoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    history = []
    for _ in range(30):
        scores = []
        model.extract_feat(inputs, scores)
        loss = objectness_loss(scores, [sample.gt_instances_3d for sample in samples])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.5 * history[0]


def test_other_selections_have_no_loss_of_objectness(small_config, build, batch):
    model = build(small_config)
    assert not model.encoder.scores_voxels
    assert 'loss_objectness' not in model.loss(*batch((300,)))
