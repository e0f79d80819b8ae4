import math

import pytest
import torch

from stratified3d.models.heads.center_layers import HeadingBranch

SIZE = 40  # cells of the map
TASKS = [['car', 'cone'], ['bus']]


@pytest.fixture
def branch():
    torch.manual_seed(0)
    return HeadingBranch(4, (0.5, 0.5), (-10.0, -10.0), TASKS, classes=['car', 'bus'])


def zeros(count):
    return torch.zeros(count, dtype=torch.int64)


def random_boxes(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(2, count, 7, generator=generator)
    boxes[..., :2] = boxes[..., :2] * 12 - 6
    boxes[..., 3:6] = boxes[..., 3:6] + torch.tensor([4.0, 1.5, 1.0])
    boxes[..., 6] *= 2 * math.pi
    return boxes


def test_box_that_faces_the_other_way_has_the_opposite_logit(branch):
    feature_map, boxes = torch.randn(2, 4, SIZE, SIZE), random_boxes(5)
    turned = boxes.clone()
    turned[..., 6] += math.pi
    logits = branch(feature_map, boxes)
    assert logits.shape == (2, 5) and logits.abs().min() > 0
    torch.testing.assert_close(branch(feature_map, turned), -logits)


def test_logit_does_not_depend_on_where_the_scene_faces(branch):
    feature_map, boxes = torch.randn(2, 4, SIZE, SIZE), random_boxes(5)
    rotated = boxes.clone()  # a quarter turn about the center of the map
    rotated[..., 0], rotated[..., 1] = -boxes[..., 1], boxes[..., 0]
    rotated[..., 6] += math.pi / 2
    logits = branch(feature_map.rot90(-1, (2, 3)), rotated)
    torch.testing.assert_close(logits, branch(feature_map, boxes), atol=1e-4, rtol=1e-4)


def test_boxes_are_sampled_where_they_are(branch):
    """The map is the column and row of its cells: samples are the coordinates themselves."""
    cells = torch.arange(SIZE) * 0.5 - 9.75  # meters
    feature_map = torch.stack(torch.meshgrid(cells, cells, indexing='xy'))[None]  # x, y
    boxes = random_boxes(6)[:1]
    places = branch._sample_places(boxes)
    seen = []
    branch.layers = torch.nn.Sequential(torch.nn.Identity())
    branch.layers.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    branch(feature_map, boxes)
    samples = seen[0].view(1, 6, -1, 2)
    torch.testing.assert_close(samples, places, atol=1e-4, rtol=1e-4)
    middle = samples.shape[2] // 2
    torch.testing.assert_close(places[:, :, middle], boxes[..., :2])


def test_heading_branch_learns_which_end_is_marked(branch):
    def make(seed):
        """Maps with a mark before the front of every box."""
        boxes = random_boxes(3, seed)
        feature_map = torch.zeros(2, 4, SIZE, SIZE)
        x = boxes[..., 0] + 0.4 * boxes[..., 3] * boxes[..., 6].cos()
        y = boxes[..., 1] + 0.4 * boxes[..., 3] * boxes[..., 6].sin()
        for b in range(2):
            feature_map[b, 1, ((y[b] + 10) / 0.5).long(), ((x[b] + 10) / 0.5).long()] = 3.0
        return feature_map, boxes

    optimizer = torch.optim.AdamW(branch.parameters(), 1e-2)
    for seed in range(80):
        feature_map, boxes = make(seed)
        optimizer.zero_grad()
        branch.loss(feature_map, list(boxes), [zeros(3), zeros(3)])[0].backward()
        optimizer.step()
    hits = [branch(*make(seed)) > 0 for seed in range(1000, 1010)]
    assert torch.stack(hits).float().mean() > 0.8  # marks of other boxes confuse


def test_loss_counts_every_valid_box_once(branch):
    branch.jitter = False
    feature_map, boxes = torch.randn(2, 4, SIZE, SIZE), random_boxes(6)
    logits = branch(feature_map, boxes)
    boxes[1, 2, 6] = torch.nan
    boxes[1, 3, 3] = torch.inf
    boxes[1, 4, 0] = 10.1  # off the map
    boxes[1, 5, 4] = 0
    labels = [torch.tensor([0, 1, 2, -1, 0, -1]), zeros(6)]  # a cone and no class are left out
    total, count = branch.loss(feature_map, list(boxes), labels)
    valid = torch.cat([logits[0, [0, 2, 4]], logits[1, :2]])
    torch.testing.assert_close(total, torch.nn.functional.softplus(-valid).sum())
    assert int(count) == 5
    total.backward()
    assert all(p.grad.isfinite().all() for p in branch.parameters())


def test_loss_without_boxes_is_zero_and_reaches_every_parameter(branch):
    feature_map = torch.randn(2, 4, SIZE, SIZE)
    loss, count = branch.loss(feature_map, [torch.zeros(0, 9)] * 2, [zeros(0)] * 2)
    assert float(loss) == 0 == int(count)
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in branch.parameters())


def test_classes_that_do_not_exist_are_named():
    with pytest.raises(ValueError, match="'Car'; there are car, cone, bus"):
        HeadingBranch(4, (0.5, 0.5), (0.0, 0.0), TASKS, classes=['Car'])
