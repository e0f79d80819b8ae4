_base_ = ['./stratified-centerpoint_voxel03_8xb4-cyclic-20e_nus-3d.py']

# x and y shrink as well after the first stage; the map is as fine as before, because its backbone
# no longer shrinks it
model = dict(
    encoder=dict(
        stages=[
            dict(depth=2, window_shape=(32, 12, 12), stride=(4, 2, 2)),
            dict(depth=2, window_shape=(8, 12, 12), stride=(4, 1, 1)),
            dict(depth=2, window_shape=(2, 12, 12), stride=(2, 1, 1)),
        ]
    ),
    backbone=dict(strides=(1, 2, 2)),
)
