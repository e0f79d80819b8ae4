_base_ = ['../../../configs/stratified/stratified-centerpoint_tiny_1xb2-cyclic-20e_nus-3d.py']

# any mixer of projects/attention_zoo takes the place of stratified attention; its README lists them
custom_imports = dict(
    imports=['stratified3d.plugin', 'projects.attention_zoo.register'], allow_failed_imports=False
)
model = dict(encoder=dict(mixer=dict(_delete_=True, type='SetAttention')))
