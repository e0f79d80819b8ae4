"""A ROS 2 node around a packaged detector: PointCloud2 in, Detection3DArray out.

python projects/deploy/ros2_node.py --ros-args -p package:=detector.pt2 -p sensor:=auto
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import PointCloud2
from vision_msgs.msg import Detection3D, Detection3DArray, ObjectHypothesisWithPose

from stratified3d.deploy import load

# datatype of sensor_msgs/PointField -> numpy
_TYPES = {1: 'i1', 2: 'u1', 3: 'i2', 4: 'u2', 5: 'i4', 6: 'u4', 7: 'f4', 8: 'f8'}


def row_type(message: Any) -> np.dtype:
    """The fields x, y, z and intensity, if it has one, of a point of a PointCloud2.

    Raises:
        ValueError: a coordinate is missing.
    """
    fields = {field.name: field for field in message.fields}
    missing = [name for name in 'xyz' if name not in fields]
    if missing:
        raise ValueError(f'the cloud has no field {", ".join(missing)}, only {", ".join(fields)}')
    order = '>' if message.is_bigendian else '<'
    read = [fields[name] for name in ('x', 'y', 'z', 'intensity') if name in fields]
    return np.dtype(
        dict(
            names=[field.name for field in read],
            formats=[order + _TYPES[field.datatype] for field in read],
            offsets=[field.offset for field in read],
            itemsize=message.point_step,
        )
    )


def points_of(message: Any) -> np.ndarray:
    """Points [P, 4] float32 x, y, z (m), intensity (0 if it has none) of a PointCloud2.

    Raises:
        ValueError: a coordinate is missing, or there are fewer bytes than points.
    """
    dtype = row_type(message)
    # rows of an organized cloud may end in padding
    length = message.width * message.point_step
    step = max(length, message.row_step)
    content = np.frombuffer(message.data, np.uint8, count=message.height * step)
    rows = content.reshape(message.height, step)[:, :length].reshape(-1).view(dtype)
    points = np.zeros((len(rows), 4), np.float32)
    for column, name in enumerate(dtype.names or ()):
        points[:, column] = rows[name]
    return points


def detection_of(box: np.ndarray, score: float, name: str, header: Any) -> Detection3D:
    """One box [7 or 9] as a message; its center is that of the volume, not of the bottom."""
    message = Detection3D(header=header)
    x, y, z, length, width, height, yaw = map(float, box[:7])
    position, size = message.bbox.center.position, message.bbox.size
    position.x, position.y, position.z = x, y, z + height / 2
    size.x, size.y, size.z = length, width, height
    orientation = message.bbox.center.orientation
    orientation.z, orientation.w = math.sin(yaw / 2), math.cos(yaw / 2)
    guess = ObjectHypothesisWithPose()
    guess.hypothesis.class_id, guess.hypothesis.score = name, float(score)
    message.results.append(guess)
    return message


class DetectorNode(Node):
    """Publishes on `detections` what a package finds in `points`."""

    def __init__(self):
        super().__init__('stratified3d')
        self.detector = load(self.declare_parameter('package', 'detector.pt2').value)
        self.sensor = self.declare_parameter('sensor', '').value or None
        self.threshold = self.declare_parameter('threshold', 0.3).value
        self.publisher = self.create_publisher(Detection3DArray, 'detections', 10)
        self.create_subscription(PointCloud2, 'points', self.detect, qos_profile_sensor_data)

    def detect(self, message: Any) -> None:
        """Answer one point cloud; a frame that cannot be used is logged and skipped."""
        out = Detection3DArray(header=message.header)
        names = [field.name for field in message.fields]
        if 'intensity' not in names:
            text = f'no field intensity among {", ".join(names)}: it is taken as 0'
            self.get_logger().warning(text, once=True)
        try:
            found = self.detector(points_of(message), sensor=self.sensor)
        except (ValueError, RuntimeError) as error:
            self.get_logger().error(str(error))
            return
        for box, score, name in zip(*found):
            if score >= self.threshold:
                out.detections.append(detection_of(box, score, name, message.header))
        self.publisher.publish(out)


if __name__ == '__main__':
    rclpy.init()
    rclpy.spin(DetectorNode())
