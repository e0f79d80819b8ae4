_base_ = 'mmdet3d::_base_/schedules/cyclic-20e.py'

# the literature's setting for attention backbones on LiDAR: a third of the decay's base rate, strong decay
optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
