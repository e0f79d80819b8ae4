"""Parts that do not fit the detector end in one sentence that names them and what would fit."""

import copy

import pytest

SWAPS = {
    'backbone': dict(type='SECOND', out_channels=[16, 16], layer_nums=[1, 1], layer_strides=[2, 2]),
    'head': dict(type='CenterHead', tasks=[dict(num_class=1, class_names=['car'])]),
    'voxel_encoder': dict(type='DynamicVFE'),
}


@pytest.mark.parametrize('part', SWAPS)
def test_part_of_mmdet3d_that_does_not_fit_is_named(small_config, build, part):
    config = copy.deepcopy(small_config)
    config[part] = SWAPS[part]
    with pytest.raises(ValueError, match=f'model.{part}: {SWAPS[part]["type"]}') as caught:
        build(config)
    message = str(caught.value)
    assert '\n' not in message
    assert 'use ' in message and 'contracts' in message


def test_unknown_setting_of_a_part_is_named(small_config, build):
    small_config['backbone']['depht'] = 3
    with pytest.raises(ValueError, match='model.backbone: .*depht'):
        build(small_config)


@pytest.mark.parametrize(
    'mixer, key',
    [
        (dict(num_strata=16, selection='nonsense'), 'nonsense'),
        (dict(type='StratifiedAttention', num_tokens=16), 'num_tokens'),
    ],
)
def test_mixer_setting_that_does_not_exist_is_named(small_config, build, mixer, key):
    small_config['encoder']['mixer'] = mixer
    with pytest.raises(ValueError, match=key):
        build(small_config)


def test_encoder_refuses_settings_of_the_mixer(small_config, build):
    small_config['encoder']['num_strata'] = 16
    with pytest.raises(ValueError, match='model.encoder: .*num_strata'):
        build(small_config)
