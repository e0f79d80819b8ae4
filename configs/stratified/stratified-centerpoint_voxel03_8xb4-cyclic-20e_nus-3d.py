_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/nuscenes.py',
    '../_base_/models/stratified_centerpoint.py',
    '../_base_/schedules/cyclic_20e.py',
]

model = dict(
    voxel_size=(0.3, 0.3, 0.25),
    point_cloud_range=_base_.point_cloud_range,
    head=dict(tasks=_base_.tasks),
)
