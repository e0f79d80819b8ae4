"""Options of commands that describe the sensor of point files."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from stratified3d.sensors import AXES, MODEL_SENSOR, SENSORS, Sensor


def add_sensor_options(parser: argparse.ArgumentParser, detects: bool = True) -> None:
    """Add --sensor, --forward, --sensor-height and --intensity-max.

    Args:
        parser: of the command.
        detects: whether the command detects objects; adds --keep-own.
    """
    parser.add_argument(
        '--sensor',
        choices=SENSORS,
        help="whose frame the point files are in (default: the model's, nuScenes' unless its "
        'config says otherwise); auto finds height and full scale, forward is x',
    )
    parser.add_argument(
        '--forward', choices=AXES, help='the axis along which the car drives; write --forward=-x'
    )
    parser.add_argument(
        '--sensor-height', type=float, metavar='M', help='of the origin above the ground'
    )
    parser.add_argument(
        '--intensity-max', type=float, metavar='N', help='full scale of the intensity (KITTI: 1)'
    )
    parser.set_defaults(keep_own=False)
    if not detects:
        return
    parser.add_argument(
        '--keep-own',
        action='store_true',
        help='keep detections around the origin, by default the vehicle that carries the sensor',
    )


def read_sensor_options(
    args: argparse.Namespace, default: Sensor = SENSORS[MODEL_SENSOR]
) -> Sensor | None:
    """The sensor that the options describe.

    Args:
        args: parsed options.
        default: what single options change where --sensor is not given.
    Returns:
        None if no option is given.
    Raises:
        ValueError: a height or a full scale that cannot be.
    """
    given = dict(forward=args.forward, height=args.sensor_height, intensity_max=args.intensity_max)
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if args.keep_own:
        changes['drop_own'] = False
    if args.sensor is None and not changes:
        return None
    return replace(SENSORS[args.sensor] if args.sensor else default, **changes)
