import json

import pytest

from stratified3d.datasets.nuscenes.splits import OFFICIAL, choose_splits, read_splits, share_scenes


def test_official_splits_share_no_scene():
    for splits in OFFICIAL.values():
        names = [name for scenes in splits.values() for name in scenes]
        assert len(names) == len(set(names)) >= 10


def test_share_takes_the_last_scenes_for_validation():
    names = [f's{i}' for i in (3, 1, 4, 0, 2)]
    assert share_scenes(names, 0.2) == dict(train=['s0', 's1', 's2', 's3'], val=['s4'])
    assert share_scenes(names, 0.01)['val'] == ['s4'] and share_scenes(names, 0.99)['train'] == [
        's0'
    ]


@pytest.mark.parametrize('share', [0, 1, -0.1, float('nan')])
def test_shares_that_cannot_be_are_named(share):
    with pytest.raises(ValueError, match=f'between 0 and 1, not {share}'):
        share_scenes(['a', 'b'], share)


def test_a_single_scene_cannot_be_split():
    with pytest.raises(ValueError, match='1 scenes cannot be split'):
        share_scenes(['a'], 0.2)


@pytest.mark.parametrize(
    'content, message',
    [
        ('{', 'not JSON'),
        ('[]', 'expected'),
        ('{}', 'expected'),
        ('{"train": "a"}', 'train is not a list'),
        ('{"train": [1]}', 'train is not a list'),
        ('{"training": ["a"]}', "no split 'training'"),
        ('{"train": ["a"], "val": ["a"]}', 'a is in train and again in val'),
    ],
)
def test_files_of_splits_are_checked(tmp_path, content, message):
    path = tmp_path / 'splits.json'
    path.write_text(content)
    with pytest.raises(ValueError, match=f'splits.json: .*{message}'):
        read_splits(path)


def test_chosen_splits(tmp_path):
    path = tmp_path / 'splits.json'
    path.write_text(json.dumps(dict(train=['a'], val=['b'])))
    assert choose_splits(['a', 'b', 'c'], 'v', path, None) == dict(train=['a'], val=['b'])
    assert choose_splits(['a', 'b'], 'v', None, 0.5) == dict(train=['a'], val=['b'])
    assert choose_splits(['a', 'b'], 'v', None, None) is None
    with pytest.raises(ValueError, match='give one'):
        choose_splits(['a', 'b'], 'v', path, 0.5)
    with pytest.raises(ValueError, match='val names b, which v does not have; it has a, x'):
        choose_splits(['a', 'x'], 'v', path, None)
    with pytest.raises(FileNotFoundError, match='none.json'):
        read_splits(tmp_path / 'none.json')
