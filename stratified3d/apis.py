"""The detector in two calls: `init_detector` and `detect`, or `detect_next` in a stream."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor

from stratified3d.checkpoints import check_fit, load_checkpoint_file, trained_classes
from stratified3d.datasets.io.point_files import read_points
from stratified3d.detections import Detections, drop_own_vehicle, points_with_dt
from stratified3d.frame_checks import check_frame
from stratified3d.layers.strata_record import StrataRecord, record_strata
from stratified3d.models.streaming import StreamLimits, StreamState, check_pose
from stratified3d.sensors import FrameChange, Sensor, frame_change, model_sensor
from stratified3d.shipped import find_shipped, make_projects_importable

if TYPE_CHECKING:
    from mmdet3d.models.detectors import Base3DDetector

__all__ = ['Detections', 'detect', 'init_detector', 'inspect_strata']


def init_detector(
    config: str | Path | Config,
    checkpoint: str | Path | None = None,
    device: str | torch.device | None = None,
) -> Base3DDetector:
    """Build a detector for inference.

    Args:
        config: path or Config of a model of this plugin, or the name of a config that comes with
            it, such as 'stratified3d::quickstart/any_sensor.py'.
        checkpoint: a .pth file written in training, or a .safetensors file, or such a name; None
            leaves random weights.
        device: default: the GPU where there is one, else the CPU.
    Returns:
        The model in evaluation mode, with `cfg` and `class_names`.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the checkpoint is damaged or of another model; there is no such device.
    """
    device = _choose_device(device)
    if not isinstance(config, Config):
        make_projects_importable()
        path = find_shipped(str(config))
        if not Path(path).is_file():
            raise FileNotFoundError(f'there is no config {config}')
        config = Config.fromfile(path)

    importlib.import_module('stratified3d.plugin')  # registers the types that configs name
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        model = MODELS.build(config.model)
    model.cfg = config
    model.class_names = [name for names in model.head.class_names for name in names]

    if checkpoint is None:
        with _without_info_logs():  # mmengine would list every parameter
            model.init_weights()
    else:
        _load_weights(model, str(checkpoint))

    return model.to(device).eval()


def _choose_device(device: str | torch.device | None) -> torch.device:
    """The device of this name; None: the GPU where there is one."""
    if device is None:
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device is 'cpu', 'cuda' or 'cuda:N', not {device!r}") from None
    count = torch.cuda.device_count()
    if chosen.type == 'cuda' and (chosen.index or 0) >= count:
        raise ValueError(
            f'there is no device {device}: torch {torch.__version__} finds {count} CUDA devices '
            'here; take cpu, or leave the device out'
        )
    return chosen


@contextmanager
def _without_info_logs() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(max(before, logging.INFO))
    try:
        yield
    finally:
        logging.disable(before)


def _load_weights(model: Base3DDetector, checkpoint: str) -> None:
    content = load_checkpoint_file(checkpoint, map_location='cpu')
    state = content.get('state_dict', content)
    check_fit(model, state, checkpoint, trained_classes(content), model.class_names)
    model.load_state_dict(state)


def detect(
    model: Base3DDetector,
    points: np.ndarray | Tensor | str | Path,
    sensor: Sensor | str | None = None,
) -> Detections:
    """Detect objects in one point cloud.

    Args:
        model: from `init_detector`.
        points: [P, 4] x, y, z (m, LiDAR frame), intensity (0 to 255); or [P, 5] with dt, the age
            of each point in seconds; or the path of a point file of one sweep, see `read_points`.
            NaN, infinite and out-of-range points are left out; without points there are no
            detections.
        sensor: the frame and the full scale of the points, a Sensor or a name in
            `stratified3d.sensors.SENSORS`; None: those that the model learned, nuScenes' unless
            its config names another `sensor`.
    Returns:
        Objects in the frame of the points, without those that contain its origin, seen from above:
        they are the vehicle that carries the sensor (`Sensor(drop_own=False)` keeps them).
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, or its columns do not fit; no such sensor.
    Warns:
        UserWarning: the points do not look like those of the sensor, see `check_frame`.
    """
    points, change = _load_checked(model, points, sensor)
    return _predict(model, points, change)


def detect_next(
    model: Base3DDetector,
    points: np.ndarray | Tensor | str | Path,
    pose: np.ndarray | Tensor,
    timestamp: float,
    state: StreamState | None = None,
    *,
    sensor: Sensor | str | None = None,
    scene: str | None = None,
    limits: StreamLimits | None = None,
) -> tuple[Detections, StreamState]:
    """Detect objects in the next frame of a stream; the model remembers earlier ones.

        state = None
        for points, pose, timestamp in frames:
            found, state = detect_next(model, points, pose, timestamp, state)

    Args:
        model: from `init_detector`; one without memory detects as `detect` does.
        points, sensor: of one sweep, as in `detect`.
        pose: [4, 4] float64, from the frame of the points to a fixed one, for instance the map's.
        timestamp: seconds.
        state: what the frame before returned; None starts a stream.
        scene: a name; another one than before starts the stream again.
        limits: when the stream starts again by itself, see `StreamLimits`.
    Returns:
        Objects in the frame of the points, see `detect`, and the state for the next frame; its
        `event` says how this frame was taken.
    Raises:
        ValueError: as in `detect`; a pose that is not rigid, a time that is not finite, the state
            of another model, points of several sweeps for a model with memory.
    """
    points, change = _load_checked(model, points, sensor)
    pose = check_pose(pose)
    if change is not None:
        pose = torch.from_numpy(change.pose_to_model(pose.numpy()))
    (sweep,) = _prepare(model, points, change)['inputs']['points']
    result, state = model.stream(sweep, pose, timestamp, state, scene=scene, limits=limits)
    return _read_result(model, result, change), state


def _load_checked(
    model: Base3DDetector, points: np.ndarray | Tensor | str | Path, sensor: Sensor | str | None
) -> tuple[Tensor, FrameChange | None]:
    """Points [P, 5] and the way to the model's frame; warns of points of another sensor."""
    points = _load(points)
    change = _find_change(model, points, sensor)
    taken_for = change.sensor if change else model_sensor(model.cfg)
    limits = np.array(model.cfg.model.point_cloud_range)
    if change:
        limits = change.limits_to_file(limits)
    for message in check_frame(points.cpu().numpy(), taken_for, limits):
        warnings.warn(message, stacklevel=3)
    return points, change


def inspect_strata(
    model: Base3DDetector,
    points: np.ndarray | Tensor | str | Path,
    stage: int = 0,
    block: int = -1,
    sensor: Sensor | str | None = None,
) -> StrataRecord:
    """Record where the strata tokens of one block are, what they collect and who reads them.

    Args:
        model: from `init_detector`.
        points, sensor: as in `detect`.
        stage, block: of the encoder; negative ones count from the end.
    Returns:
        Positions are in the frame of the points.
    Raises:
        ValueError: there is no such block, or it has no strata.
    """
    try:
        mixer = model.encoder.stages[stage].blocks[block].mixer
    except IndexError:
        depths = [len(stage.blocks) for stage in model.encoder.stages]
        raise ValueError(
            f'there is no block {block} of stage {stage}; the stages have {depths} blocks'
        ) from None

    points = _load(points)
    change = _find_change(model, points, sensor)
    with record_strata(mixer) as records:
        _predict(model, points, change)
    (record,) = records
    if change is None:
        return record
    return record._replace(
        voxels=change.positions_to_file(record.voxels),
        tokens=change.positions_to_file(record.tokens),
    )


def _load(points: np.ndarray | Tensor | str | Path) -> Tensor:
    """Points [P, 5] float32 of an array or a file."""
    return points_with_dt(read_points(points) if isinstance(points, (str, Path)) else points)


def _find_change(
    model: Base3DDetector, points: Tensor, sensor: Sensor | str | None
) -> FrameChange | None:
    """The way to the model's frame; None where the points are taken as they are."""
    if sensor is None:
        return None
    return frame_change(points.cpu().numpy(), sensor, model_sensor(model.cfg))


def _predict(model: Base3DDetector, points: Tensor, change: FrameChange | None) -> Detections:
    """Detections in points [P, 5], in their frame."""
    with torch.no_grad():
        (result,) = model(**_prepare(model, points, change), mode='predict')
    return _read_result(model, result, change)


def _prepare(model: Base3DDetector, points: Tensor, change: FrameChange | None) -> dict:
    """The batch of one sample, on the model's device and in its frame."""
    if change is not None:
        points = torch.from_numpy(change.points_to_model(points.cpu().numpy()))
    sample = Det3DDataSample(metainfo=dict(box_type_3d=LiDARInstance3DBoxes))
    batch = dict(inputs=dict(points=[points]), data_samples=[sample])
    return model.data_preprocessor(batch, training=False)


def _read_result(
    model: Base3DDetector, result: Det3DDataSample, change: FrameChange | None
) -> Detections:
    """Detections of a sample, in the frame of the file."""
    found = result.pred_instances_3d
    found = found[found.scores_3d.argsort(descending=True)].to('cpu')
    boxes = found.bboxes_3d.tensor.numpy()
    detections = Detections(
        boxes if change is None else change.boxes_to_file(boxes),
        found.scores_3d.numpy(),
        [model.class_names[label] for label in found.labels_3d.tolist()],
    )
    sensor = change.sensor if change else model_sensor(model.cfg)
    return drop_own_vehicle(detections) if sensor.drop_own else detections
