_base_ = ['./quickstart.py']

# the detector of the weights in this folder: inputs in meters and seconds, a wider backbone, a
# branch for each kind of number and no axis branch
model = dict(
    voxel_encoder=dict(dt_unit=1.0, relative_offsets=False),
    backbone=dict(channels=(128, 128, 256), out_channels=64),
    head=dict(
        code_weights=[2, 2, 1, 1, 1, 1, 0.5, 0.5, 0.1, 0.1],
        axis_weight=0.0,
        heading=None,
        joint_branches=False,
    ),
)
