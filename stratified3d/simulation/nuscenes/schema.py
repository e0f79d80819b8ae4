"""Names and constants of the nuScenes format: categories, attributes, cameras, tables, classes."""

from __future__ import annotations

from stratified3d.simulation.objects.construction import CONSTRUCTION
from stratified3d.simulation.objects.furniture import BARRIER, CART, CONE, DEBRIS, RACK
from stratified3d.simulation.objects.people import (
    ADULT,
    ANIMAL,
    BICYCLE,
    CHILD,
    MOTORCYCLE,
    POLICE,
    STROLLER,
    WORKER,
)
from stratified3d.simulation.objects.trucks import TRAILER, TRUCK
from stratified3d.simulation.objects.vehicles import BENDY_BUS, BUS, CAR

CATEGORIES = (
    ADULT,
    CHILD,
    'human.pedestrian.wheelchair',
    STROLLER,
    'human.pedestrian.personal_mobility',
    POLICE,
    WORKER,
    ANIMAL,
    CAR,
    MOTORCYCLE,
    BICYCLE,
    BENDY_BUS,
    BUS,
    TRUCK,
    CONSTRUCTION,
    'vehicle.emergency.ambulance',
    'vehicle.emergency.police',
    TRAILER,
    BARRIER,
    CONE,
    CART,
    DEBRIS,
    RACK,
)
ATTRIBUTES = (
    'vehicle.moving',
    'vehicle.stopped',
    'vehicle.parked',
    'cycle.with_rider',
    'cycle.without_rider',
    'pedestrian.sitting_lying_down',
    'pedestrian.standing',
    'pedestrian.moving',
)
VISIBILITIES = ('v0-40', 'v40-60', 'v60-80', 'v80-100')
# channel: (yaw deg, translation m) on the car, rounded from a released calibration; the images
# themselves are not made
CAMERAS = {
    'CAM_FRONT': (0.0, (1.70, 0.02, 1.51)),
    'CAM_FRONT_RIGHT': (-55.0, (1.55, -0.49, 1.50)),
    'CAM_FRONT_LEFT': (55.0, (1.52, 0.49, 1.51)),
    'CAM_BACK': (180.0, (0.03, 0.0, 1.57)),
    'CAM_BACK_LEFT': (110.0, (1.04, 0.48, 1.56)),
    'CAM_BACK_RIGHT': (-110.0, (1.01, -0.48, 1.56)),
}
INTRINSIC = [[1266.4, 0.0, 816.3], [0.0, 1266.4, 491.5], [0.0, 0.0, 1.0]]
TABLES = (
    'attribute',
    'calibrated_sensor',
    'category',
    'ego_pose',
    'instance',
    'log',
    'map',
    'sample',
    'sample_annotation',
    'sample_data',
    'scene',
    'sensor',
    'visibility',
)
# category: class of the detection task
DETECTION_NAMES = {
    CAR: 'car',
    TRUCK: 'truck',
    BUS: 'bus',
    BENDY_BUS: 'bus',
    TRAILER: 'trailer',
    CONSTRUCTION: 'construction_vehicle',
    ADULT: 'pedestrian',
    CHILD: 'pedestrian',
    WORKER: 'pedestrian',
    POLICE: 'pedestrian',
    MOTORCYCLE: 'motorcycle',
    BICYCLE: 'bicycle',
    CONE: 'traffic_cone',
    BARRIER: 'barrier',
}
