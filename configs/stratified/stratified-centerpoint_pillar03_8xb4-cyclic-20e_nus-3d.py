_base_ = ['./stratified-centerpoint_voxel03_8xb4-cyclic-20e_nus-3d.py']

# the fast one: one voxel over the whole height, so a third as many and nothing to shrink
model = dict(
    voxel_size=(0.3, 0.3, 8.0),
    encoder=dict(
        stages=[dict(depth=2, window_shape=(1, 12, 12)), dict(depth=2, window_shape=(1, 24, 24))]
    ),
)
