_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/waymo.py',
    '../_base_/models/stratified_centerpoint.py',
    '../_base_/schedules/cyclic_24e.py',
]

model = dict(
    voxel_size=(0.32, 0.32, 0.1875),
    point_cloud_range=_base_.point_cloud_range,
    # tanh has brought the intensity to 1; the fifth column is the elongation
    voxel_encoder=dict(intensity_max=1.0),
    # pedestrians are small: the map keeps the voxels' size
    backbone=dict(strides=(1, 2, 2)),
    head=dict(
        tasks=_base_.tasks, use_velocity=False, nms=dict(type='rotated', iou=0.7), post_max_size=300
    ),
)
