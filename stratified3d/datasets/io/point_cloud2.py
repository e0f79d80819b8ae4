"""Points of a ROS message sensor_msgs/PointCloud2, read without ROS."""

from __future__ import annotations

from typing import Any

import numpy as np

from stratified3d.datasets.io.formats.columns import stack_points

# datatype of sensor_msgs/PointField -> numpy
_TYPES = {1: 'i1', 2: 'u1', 3: 'i2', 4: 'u2', 5: 'i4', 6: 'u4', 7: 'f4', 8: 'f8'}


def read_point_cloud2(message: Any) -> np.ndarray:
    """Read the coordinates and the intensity of a cloud, in any order, type and byte order.

    Points and the rows of an organized cloud may end in padding. A cloud without intensity is
    warned of.

    Args:
        message: with the members of sensor_msgs/PointCloud2.
    Returns:
        [P, 4] float32 x, y, z (m), intensity, which is 0 where the cloud has none.
    Raises:
        ValueError: a coordinate is missing, or there are fewer bytes than points.
    """
    length = message.width * message.point_step
    step = max(length, message.row_step)  # some drivers leave it 0
    content = np.frombuffer(message.data, np.uint8, count=message.height * step)
    rows = content.reshape(message.height, step)[:, :length].reshape(-1, message.point_step)

    order = '>' if message.is_bigendian else '<'
    columns = {}
    for field in message.fields:
        if field.datatype in _TYPES:
            dtype = np.dtype(order + _TYPES[field.datatype])
            values = rows[:, field.offset : field.offset + dtype.itemsize]
            columns[field.name] = values.copy().view(dtype)[:, 0]
    return stack_points('the cloud', columns)
