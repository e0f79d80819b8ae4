# Widths and windows. Range, voxel size and classes are the dataset's: a leaf config joins the two.
model = dict(
    type='StratifiedCenterPoint',
    data_preprocessor=dict(type='Det3DDataPreprocessor'),
    voxel_encoder=dict(
        type='DynamicVoxelEncoder', in_channels=5, hidden_channels=64, out_channels=64
    ),
    encoder=dict(
        type='StratifiedEncoder',
        channels=128,
        num_heads=4,
        mixer=dict(type='StratifiedAttention', num_strata=64, selection='pool', fusion='joint'),
        stem_depth=2,
        # window_shape and stride are (z, y, x) in voxels of the stage; z shrinks 32 -> 8 -> 2 -> 1
        stages=[
            dict(depth=2, window_shape=(32, 12, 12), stride=(4, 1, 1)),
            dict(depth=2, window_shape=(8, 12, 12), stride=(4, 1, 1)),
            dict(depth=2, window_shape=(2, 24, 24), stride=(2, 1, 1)),
        ],
    ),
    backbone=dict(
        type='ResidualBEVBackbone',
        channels=(128, 128, 256),
        depths=(1, 2, 2),
        strides=(2, 2, 2),
        out_channels=128,
    ),
    # IoU branch, IoU-aware scores and IoU loss, as the LiDAR transformers train
    head=dict(
        type='StratifiedCenterHead',
        shared_channels=64,
        iou_weight=0.5,
        iou_power=0.5,
        iou_loss_weight=0.5,
        nms=dict(type='rotated', iou=0.2),
    ),
)
