_base_ = ['./quickstart.py']

# the detector of the weights in this folder: a wider backbone, a branch for each kind of number, no
# axis branch, and training frames that are mirrored
model = dict(
    backbone=dict(channels=(128, 128, 256), out_channels=64),
    head=dict(
        code_weights=[2, 2, 1, 1, 1, 1, 0.5, 0.5, 0.1, 0.1], axis_weight=0.0, joint_branches=False
    ),
)
train_pipeline = list(_base_.train_pipeline)
train_pipeline.insert(
    [t['type'] for t in train_pipeline].index('PointsRangeFilter'),
    dict(
        type='RandomFlip3D',
        sync_2d=False,
        flip_ratio_bev_horizontal=0.5,
        flip_ratio_bev_vertical=0.5,
    ),
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
