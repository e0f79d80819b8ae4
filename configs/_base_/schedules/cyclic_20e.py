_base_ = 'mmdet3d::_base_/schedules/cyclic-20e.py'

# attention backbones on LiDAR are trained with five times this schedule's weight decay
optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
