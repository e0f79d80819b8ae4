"""The examples of docs/deploy.md: a ROS 2 node against a stub of ROS, and a C++ program."""

import runpy
import shutil
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from stratified3d import deploy
from stratified3d.detections import Detections


class _Message(SimpleNamespace):
    """A ROS message: fields appear when they are first read."""

    def __getattr__(self, name):
        value = [] if name in ('results', 'detections') else _Message()
        setattr(self, name, value)
        return value


class _Node:
    parameters = dict(threshold=0.5)

    def __init__(self, name):
        self.published, self.errors = [], []

    def declare_parameter(self, name, default):
        return SimpleNamespace(value=self.parameters.get(name, default))

    def create_publisher(self, kind, topic, depth):
        return SimpleNamespace(publish=self.published.append)

    def create_subscription(self, kind, topic, callback, qos):
        self.callback = callback

    def get_logger(self):
        return SimpleNamespace(error=self.errors.append)


@pytest.fixture
def node(root, monkeypatch):
    """The example's node, its detector a function that the test sets."""
    stubs = {
        'rclpy': {},
        'rclpy.node': dict(Node=_Node),
        'rclpy.qos': dict(qos_profile_sensor_data=None),
        'sensor_msgs': {},
        'sensor_msgs.msg': dict(PointCloud2=_Message),
        'vision_msgs': {},
        'vision_msgs.msg': dict.fromkeys(
            ('Detection3D', 'Detection3DArray', 'ObjectHypothesisWithPose'), _Message
        ),
    }
    for name, members in stubs.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(deploy, 'load', lambda path: None)
    return runpy.run_path(str(root / 'projects/deploy/ros2_node.py'))['DetectorNode']()


def cloud(points):
    """PointCloud2 of points [P, 4]."""
    names = ('x', 'y', 'z', 'intensity')
    return SimpleNamespace(
        header='header',
        fields=[SimpleNamespace(name=n, offset=4 * i, datatype=7) for i, n in enumerate(names)],
        is_bigendian=False,
        point_step=16,
        row_step=16 * len(points),
        width=len(points),
        height=1,
        data=points.astype('<f4').tobytes(),
    )


def test_node_publishes_the_boxes_of_a_cloud(node):
    points = np.arange(12, dtype=np.float32).reshape(3, 4)
    boxes = np.array([[1, 2, 3, 4, 5, 6, np.pi / 2], [0] * 7], np.float32)
    seen = []

    def detector(points, sensor):
        seen.append(points)
        return Detections(boxes, np.array([0.9, 0.1], np.float32), ['car', 'bus'])

    node.detector = detector
    node.callback(cloud(points))
    np.testing.assert_array_equal(seen[0], points)
    (message,) = node.published
    (detection,) = message.detections  # the other is below the threshold
    assert message.header == 'header'
    assert detection.bbox.center.position.z == 3 + 6 / 2
    assert detection.bbox.center.orientation.z == pytest.approx(np.sin(np.pi / 4))
    assert detection.results[0].hypothesis.class_id == 'car'


def test_a_cloud_without_coordinates_is_logged_and_skipped(node):
    message = cloud(np.ones((2, 4)))
    message.fields.pop(1)
    node.callback(message)
    assert 'the cloud: has no column y' in node.errors[0] and not node.published


@pytest.mark.parametrize('error', [ValueError('too many voxels'), RuntimeError('rounds of NMS')])
def test_node_goes_on_after_a_bad_cloud(node, error):
    def detector(points, sensor):
        raise error

    node.detector = detector
    node.callback(cloud(np.zeros((1, 4))))
    message = cloud(np.zeros((1, 4)))
    message.data = message.data[1:]
    node.callback(message)
    assert node.errors[0] == str(error) and len(node.errors) == 2 and not node.published


@pytest.fixture(scope='module')
def program(root, tmp_path_factory):
    """The built C++ example."""
    if not shutil.which('cmake') or not (shutil.which('g++') or shutil.which('clang++')):
        pytest.skip('no cmake or no C++ compiler')
    build = tmp_path_factory.mktemp('build')
    prefix = f'-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}'
    for command in (
        ['cmake', '-S', root / 'projects/deploy', '-B', build, prefix],
        ['cmake', '--build', build],
    ):
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
    return build / 'detect'


@pytest.mark.slow
def test_cpp_program_prints_the_boxes_of_a_file(program, package, frame, tmp_path):
    points = frame(800)
    points[:, 4] = 0
    points[:, :4].tofile(tmp_path / 'sweep.bin')
    result = subprocess.run(
        [program, package, tmp_path / 'sweep.bin'], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    found = deploy.load(package)(points)
    assert [line[0] for line in lines] == found.names
    numbers = np.array([line[1:] for line in lines], np.float32)
    np.testing.assert_allclose(numbers[:, 0], found.scores, atol=1e-5)
    np.testing.assert_allclose(numbers[:, 1:], found.boxes, atol=1e-4)
    points.tofile(tmp_path / 'sweep5.bin')
    wider = subprocess.run(
        [program, package, tmp_path / 'sweep5.bin', '5'], capture_output=True, text=True
    )
    assert wider.stdout == result.stdout


@pytest.mark.slow
def test_cpp_program_names_what_is_wrong(program, package, frame, tmp_path):
    (tmp_path / 'odd.bin').write_bytes(b'12345')
    frame(9000)[:, :4].tofile(tmp_path / 'full.bin')
    for arguments, message in (
        ([tmp_path / 'none.pt2', tmp_path / 'odd.bin'], 'there is no package'),
        ([package, tmp_path / 'none.bin'], 'there is no point file'),
        ([package, tmp_path / 'odd.bin'], 'no rows of 4 numbers'),
        ([package, tmp_path / 'full.bin', '7'], 'no rows of 7 numbers'),
        ([package, tmp_path / 'full.bin', 'four'], 'COLUMNS is a number'),
        ([package, tmp_path / 'full.bin'], 'and the package a capacity of 3000'),
    ):
        result = subprocess.run([program, *arguments], capture_output=True, text=True)
        assert result.returncode == 1 and message in result.stderr
