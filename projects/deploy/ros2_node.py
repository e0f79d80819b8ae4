"""A ROS 2 node around a packaged detector: PointCloud2 in, Detection3DArray out.

python projects/deploy/ros2_node.py --ros-args -p package:=detector.pt2 -p sensor:=auto
"""

import math

import rclpy
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import PointCloud2
from vision_msgs.msg import Detection3D, Detection3DArray, ObjectHypothesisWithPose

from stratified3d.datasets.io.point_cloud2 import read_point_cloud2
from stratified3d.deploy import load


def detection_of(box, score, name, header) -> Detection3D:
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

    def detect(self, cloud: PointCloud2) -> None:
        """Answer one point cloud; a frame that cannot be used is logged and skipped."""
        try:
            found = self.detector(read_point_cloud2(cloud), sensor=self.sensor)
        except (ValueError, RuntimeError) as error:
            self.get_logger().error(str(error))
            return
        out = Detection3DArray(header=cloud.header)
        for box, score, name in zip(*found):
            if score >= self.threshold:
                out.detections.append(detection_of(box, score, name, cloud.header))
        self.publisher.publish(out)


if __name__ == '__main__':
    rclpy.init()
    rclpy.spin(DetectorNode())
