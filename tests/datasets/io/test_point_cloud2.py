"""Clouds of ROS messages: padding, byte order, types, organized rows, what is missing."""

from types import SimpleNamespace

import numpy as np
import pytest

from stratified3d.datasets.io.point_cloud2 import read_point_cloud2

NUMBERS = {'f4': 7, 'f8': 8, 'u2': 4, 'u1': 2}  # of datatypes in sensor_msgs/PointField


def make_cloud(points, types=('f4', 'f4', 'f4', 'f4'), order='<', width=None, row_padding=0):
    """A cloud of points [P, 4] with padding in front of the intensity and behind it."""
    names, offsets = ('x', 'y', 'z', 'intensity'), (0, 8, 16, 28)
    formats = [order + kind for kind in types]
    rows = np.full(
        len(points), 0, np.dtype(dict(names=names, formats=formats, offsets=offsets, itemsize=40))
    )
    rows.view(np.uint8)[:] = 0x7F
    for column, name in enumerate(names):
        rows[name] = points[:, column]
    width = len(points) if width is None else width
    height = len(points) // width if width else 1
    blocks = rows.reshape(height, width)
    return SimpleNamespace(
        fields=[
            SimpleNamespace(name=name, offset=offset, datatype=NUMBERS[kind])
            for name, offset, kind in zip(names, offsets, types)
        ],
        is_bigendian=order == '>',
        point_step=40,
        row_step=40 * width + row_padding,
        width=width,
        height=height,
        data=b''.join(block.tobytes() + b'\x7f' * row_padding for block in blocks),
    )


POINTS = np.arange(24, dtype=np.float32).reshape(6, 4)


@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize('intensity', ['f4', 'u2', 'u1', 'f8'])
@pytest.mark.parametrize('width, row_padding', [(None, 0), (2, 16), (3, 0)])
def test_points_are_read_in_every_layout(order, intensity, width, row_padding):
    cloud = make_cloud(POINTS, ('f4', 'f8', 'f4', intensity), order, width, row_padding)
    points = read_point_cloud2(cloud)
    np.testing.assert_array_equal(points, POINTS)
    assert points.dtype == np.float32


def test_a_row_step_of_zero_and_an_empty_cloud():
    cloud = make_cloud(POINTS)
    cloud.row_step = 0
    np.testing.assert_array_equal(read_point_cloud2(cloud), POINTS)
    assert read_point_cloud2(make_cloud(POINTS[:0])).shape == (0, 4)


def test_intensity_under_another_name_or_missing():
    cloud = make_cloud(POINTS)
    cloud.fields[3].name = 'reflectivity'
    np.testing.assert_array_equal(read_point_cloud2(cloud), POINTS)
    cloud.fields[3].name = 'ring'
    with pytest.warns(UserWarning, match="no intensity, which is taken as 0.*'ring'"):
        points = read_point_cloud2(cloud)
    np.testing.assert_array_equal(points, POINTS * [1, 1, 1, 0])


def test_fields_of_padding_may_share_a_name():
    cloud = make_cloud(POINTS)
    cloud.fields += [SimpleNamespace(name='', offset=offset, datatype=0) for offset in (4, 12)]
    np.testing.assert_array_equal(read_point_cloud2(cloud), POINTS)


def test_what_cannot_be_read_is_a_value_error():
    cloud = make_cloud(POINTS)
    cloud.fields.pop(1)
    with pytest.raises(ValueError, match='the cloud: has no column y'):
        read_point_cloud2(cloud)
    cloud = make_cloud(POINTS)
    cloud.data = cloud.data[1:]
    with pytest.raises(ValueError, match='buffer is smaller'):
        read_point_cloud2(cloud)
    cloud = make_cloud(POINTS)
    cloud.fields[2].offset = 38
    with pytest.raises(ValueError):
        read_point_cloud2(cloud)
