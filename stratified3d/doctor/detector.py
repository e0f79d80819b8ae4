"""A small detector on a GPU beside the same one on the CPU."""

from __future__ import annotations

import copy
import warnings
from contextlib import nullcontext
from typing import Any

import torch

from stratified3d.doctor.checks import SkippedCheck
from stratified3d.testing import exact_products

RANGE = (-12.8, -12.8, -2.0, 12.8, 12.8, 2.0)
SIZES = (3000, 2000)  # points per sample
NUM_BOXES = 6
TOLERANCE = 1e-2  # of losses and gradients
# of the losses in half precision, against fp32
HALF_TOLERANCE = {torch.float16: 0.03, torch.bfloat16: 0.1}


def check_losses(device: str) -> str:
    """Losses, and the gradient of every parameter."""
    return _compare(_losses_and_gradients(device), _losses_and_gradients('cpu'), TOLERANCE)


def check_half_losses(device: str, dtype: torch.dtype) -> str:
    """Losses under autocast, which mixed-precision training (`--amp`) uses."""
    found = _losses_and_gradients(device, dtype)
    broken = [name for name, value in found.items() if not value.isfinite().all()]
    assert not broken, f'NaN or infinite: {", ".join(broken)}'

    expected = _losses_and_gradients('cpu')
    losses = {name: value for name, value in expected.items() if 'loss' in name}
    return _compare(found, losses, HALF_TOLERANCE[dtype])


def check_predictions(device: str) -> str:
    """Boxes and scores of the same points."""
    boxes_cpu, scores_cpu = _predict('cpu')
    boxes, scores = _predict(device)
    assert len(scores) == len(scores_cpu), f'{len(scores)} boxes, {len(scores_cpu)} on the CPU'
    score_error = float((scores - scores_cpu).abs().max())
    assert score_error < TOLERANCE, f'scores differ by {score_error:.1e}'
    # boxes of nearly the same score change places, and where one overlaps another by just the limit
    # the NMS may keep another one
    distance = torch.cdist(boxes[:, :3], boxes_cpu[:, :3]).min(1).values
    num_moved = int((distance > 0.05).sum())
    assert num_moved <= len(boxes) // 20, f'{num_moved} of {len(boxes)} boxes are elsewhere'
    return f'{len(scores)} boxes, {num_moved} elsewhere, scores within {score_error:.1e}'


def check_steps(device: str) -> str:
    """Training steps in mixed precision lower the loss, and how often a step waits for the GPU."""
    if not device.startswith('cuda'):
        raise SkippedCheck('needs a CUDA device')
    model = _build().to(device)
    inputs, samples = _make_batch(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    scaler = torch.amp.GradScaler('cuda')

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        with torch.autocast('cuda', torch.float16):
            loss = torch.stack([*model.loss(inputs, samples).values()]).sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    losses = [step() for _ in range(20)]
    first, last = float(losses[0]), float(losses[-1])
    assert last < first, f'the loss went from {first:.3f} to {last:.3f} in 20 steps'
    places = _waits(step)
    return f'loss {first:.2f} to {last:.2f}; {len(places)} waits: {", ".join(sorted(set(places)))}'


def _waits(call: Any) -> list[str]:
    """File and line of every wait for the GPU."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('warn')
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            call()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    return [
        f'{str(w.filename).rsplit("/", 1)[-1]}:{w.lineno}'
        for w in caught
        if 'synchroniz' in str(w.message)
    ]


def _losses_and_gradients(device: str, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Losses and gradients by name, on the CPU; under autocast where there is a dtype."""
    model = _build().to(device)
    inputs, samples = _make_batch(device)
    autocast = torch.autocast(torch.device(device).type, dtype) if dtype else nullcontext()
    with exact_products():
        with autocast:
            losses = model.loss(inputs, samples)
        torch.stack([*losses.values()]).sum().backward()

    found = {name: value.detach() for name, value in losses.items()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f'{name} has no gradient'
        found[name] = parameter.grad
    return {name: value.float().cpu() for name, value in found.items()}


def _compare(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float
) -> str:
    """Norms of differences over norms, of all that is expected."""
    # what is a ten-thousandth of the largest gradient is rounding as a whole
    floor = 1e-4 * max(float(value.norm()) for value in expected.values())
    errors = {}
    for name, value in expected.items():
        errors[name] = float((found[name] - value).norm()) / max(float(value.norm()), floor)
    wrong = [f'{name} by {error:.1e}' for name, error in errors.items() if not error <= tolerance]
    assert not wrong, f'{len(wrong)} of {len(errors)} differ: {"; ".join(wrong[:5])}'
    return f'{len(errors)} tensors, largest difference {max(errors.values()):.1e}'


def _predict(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes and scores of all samples."""
    model = _build().to(device).eval()
    inputs, samples = _make_batch(device)
    with torch.no_grad(), exact_products():
        results = model.predict(inputs, copy.deepcopy(samples))
    instances = [result.pred_instances_3d for result in results]
    boxes = torch.cat([instance.bboxes_3d.tensor for instance in instances])
    scores = torch.cat([instance.scores_3d for instance in instances])
    return boxes.cpu(), scores.cpu()


def _build() -> Any:
    """The same detector of a few thousand parameters at every call."""
    from mmdet3d.registry import MODELS
    from mmengine.registry import init_default_scope

    import stratified3d.plugin  # noqa: F401  (registers the parts)

    init_default_scope('mmdet3d')
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(CONFIG))
    model.init_weights()
    return model


def _make_batch(device: str) -> tuple[dict, list]:
    """Random points and boxes, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    span = torch.tensor([24.0, 24.0, 3.6, 255.0, 0.5])
    points, samples = [], []
    for size in SIZES:
        cloud = (torch.rand(size, 5, generator=generator) - 0.5) * span
        points.append(cloud.to(device))
        samples.append(_make_sample(device, generator))
    return dict(points=points), samples


def _make_sample(device: str, generator: torch.Generator) -> Any:
    """A sample with random boxes."""
    from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
    from mmengine.structures import InstanceData

    boxes = torch.rand(NUM_BOXES, 9, generator=generator)
    boxes = boxes * torch.tensor([20.0, 20, 1, 4, 2, 2, 6, 4, 4]) - torch.tensor(
        [10.0, 10, 1, -0.5, -0.5, -0.5, 3, 2, 2]
    )
    labels = torch.randint(0, 3, (NUM_BOXES,), generator=generator)
    sample = Det3DDataSample(metainfo=dict(box_type_3d=LiDARInstance3DBoxes))
    sample.gt_instances_3d = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(boxes.to(device), box_dim=9), labels_3d=labels.to(device)
    )
    return sample


# every part of the nuScenes detectors
CONFIG: dict[str, Any] = dict(
    type='StratifiedCenterPoint',
    voxel_size=(0.4, 0.4, 0.5),
    point_cloud_range=RANGE,
    data_preprocessor=dict(type='Det3DDataPreprocessor'),
    voxel_encoder=dict(type='DynamicVoxelEncoder', hidden_channels=16, out_channels=32),
    encoder=dict(
        type='StratifiedEncoder',
        channels=32,
        num_heads=2,
        mixer=dict(type='StratifiedAttention', num_strata=16),
        stem_depth=1,
        stages=[
            dict(depth=2, window_shape=(8, 8, 8), stride=(4, 1, 1)),
            dict(depth=2, window_shape=(2, 8, 8), stride=(2, 1, 1)),
        ],
    ),
    backbone=dict(
        type='ResidualBEVBackbone',
        channels=(32, 32),
        depths=(1, 1),
        strides=(2, 2),
        out_channels=32,
    ),
    head=dict(
        type='StratifiedCenterHead',
        tasks=[['car'], ['truck', 'bus']],
        shared_channels=32,
        iou_weight=0.5,
        iou_loss_weight=0.5,
        axis_weight=1.0,
        heading=dict(jitter=False),  # random numbers of a GPU are others
        score_threshold=0.0,
        post_max_size=20,
    ),
)
