_base_ = ['./stratified-centerpoint_voxel03_8xb4-cyclic-20e_nus-3d.py']

# the same encoder at a size that two CPU cores can train: coarser voxels, half the width, two
# stages, one task
model = dict(
    voxel_size=(0.4, 0.4, 0.5),
    voxel_encoder=dict(hidden_channels=32, out_channels=64),
    encoder=dict(
        channels=64,
        num_heads=2,
        stem_depth=1,
        stages=[
            dict(depth=2, window_shape=(16, 12, 12), stride=(4, 1, 1)),
            dict(depth=2, window_shape=(4, 24, 24), stride=(4, 1, 1)),
        ],
    ),
    backbone=dict(channels=(64, 128), depths=(1, 2), strides=(2, 2), out_channels=64),
    head=dict(tasks=[_base_.class_names], shared_channels=32, post_max_size=300),
)
train_dataloader = dict(batch_size=2, num_workers=1)
