_base_ = ['./stratified-centerpoint_voxel03_8xb4-cyclic-20e_nus-3d.py']

# one and a half times the width, twice the strata
model = dict(
    voxel_encoder=dict(hidden_channels=96, out_channels=96),
    encoder=dict(channels=192, num_heads=6, mixer=dict(num_strata=128)),
    backbone=dict(channels=(192, 192, 384), out_channels=192),
)
