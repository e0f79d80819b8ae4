import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from stratified3d.models.heads.box_coding import align_yaw, angle_of, encode_axis

ANGLES = st.floats(-math.pi, math.pi)


def encoding_of(yaw, length=1.0):
    rest = torch.arange(10, dtype=torch.float64)
    yaw = torch.tensor(yaw, dtype=torch.float64)
    heading = length * torch.stack([yaw.sin(), yaw.cos()])
    return torch.cat([rest[:6], heading, rest[8:]])


@given(yaw=ANGLES)
def test_axis_is_the_same_for_a_box_that_faces_the_other_way(yaw):
    axis = encode_axis(encoding_of(yaw))
    torch.testing.assert_close(axis, encode_axis(encoding_of(yaw + math.pi)))
    torch.testing.assert_close(axis.norm(), torch.ones((), dtype=torch.float64))


@given(yaw=ANGLES, error=st.floats(-1.5, 1.5), length=st.floats(0.01, 2))
def test_aligned_yaw_is_the_nearer_direction_of_the_axis(yaw, error, length):
    axis = encode_axis(encoding_of(yaw))
    aligned = align_yaw(encoding_of(yaw + error, length), axis)
    torch.testing.assert_close(aligned, encoding_of(yaw), atol=1e-9, rtol=0)
    opposite = align_yaw(encoding_of(yaw + error + math.pi, length), axis)
    torch.testing.assert_close(opposite, encoding_of(yaw + math.pi), atol=1e-9, rtol=0)


def test_angle_of_nothing_has_a_finite_gradient():
    parts = torch.zeros(2, 3, requires_grad=True)
    angle = angle_of(*parts)
    angle.sum().backward()
    assert not angle.any() and parts.grad.isfinite().all()
