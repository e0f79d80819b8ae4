_base_ = ['./pretrain.py']

# twice as long: time enough to learn which way things face and how fast they move, weighted as in
# the full-size configs
model = dict(head=dict(code_weights=[2, 2, 1, 1, 1, 1, 1, 1, 0.2, 0.2]))
epochs = 8
param_scheduler = [dict(_base_.param_scheduler[0], total_steps=epochs)]
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
