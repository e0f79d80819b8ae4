import os

import pytest

from stratified3d.datasets.nuscenes.folders import (
    check_files,
    link_dataset,
    list_versions,
    read_scenes,
)


@pytest.fixture
def dataset(tmp_path):
    """Two keyframes and three sweeps, tables of two versions, and a result of an earlier run."""
    root = tmp_path / 'downloaded'
    for folder in ('samples/L', 'sweeps/L', 'v1.0-mini', 'v1.0-trainval', 'maps'):
        (root / folder).mkdir(parents=True)
    for i in range(5):
        (root / ('samples/L' if i < 2 else 'sweeps/L') / f'{i}.bin').touch()
    (root / 'v1.0-mini/scene.json').write_text('[{"name": "a", "nbr_samples": 2}]')
    (root / 'v1.0-trainval/scene.json').write_text('[{"nbr_samples": 2}]')
    (root / 'nuscenes_infos_train.pkl').touch()
    return root


def test_versions_and_scenes(dataset):
    assert list_versions(dataset) == ['v1.0-mini', 'v1.0-trainval']
    assert read_scenes(dataset, 'v1.0-mini') == {'a': 2}
    with pytest.raises(ValueError, match='v1.0-trainval/scene.json: damaged'):
        read_scenes(dataset, 'v1.0-trainval')
    with pytest.raises(FileNotFoundError, match='v1.0-test: no nuScenes tables .*--version v1.0-m'):
        read_scenes(dataset, 'v1.0-test')


PATHS = ['samples/L/0.bin', 'samples/L/1.bin', 'sweeps/L/2.bin', 'sweeps/L/3.bin', 'sweeps/L/4.bin']


def test_missing_files_are_counted_by_folder(dataset):
    check_files(dataset, PATHS)
    (dataset / 'sweeps/L/3.bin').unlink()
    with pytest.raises(FileNotFoundError) as error:
        check_files(dataset, PATHS)
    text = str(error.value)
    assert '1 of 5 point files are missing' in text
    assert 'sweeps/L/: 1 of 3, such as 3.bin' in text and 'keyframes only: --max-sweeps 0' in text
    (dataset / 'samples/L/0.bin').unlink()
    with pytest.raises(FileNotFoundError) as error:
        check_files(dataset, [*PATHS, 'sweeps/R/5.bin'])
    text = str(error.value)
    assert '3 of 6' in text and 'sweeps/R/: 1 of 1' in text and 'samples/L/: 1 of 2' in text
    assert 'keyframes only' not in text


def test_linked_folder_has_everything_but_results(dataset, tmp_path):
    out = link_dataset(dataset, tmp_path / 'out')
    assert link_dataset(dataset, out) == out  # again
    assert sorted(os.listdir(out)) == ['maps', 'samples', 'sweeps', 'v1.0-mini', 'v1.0-trainval']
    check_files(out, PATHS)
    assert link_dataset(dataset, dataset) == dataset
    inside = link_dataset(dataset, dataset / 'prepared')
    assert sorted(os.listdir(inside)) == sorted(os.listdir(out))
    (tmp_path / 'other/samples').mkdir(parents=True)
    with pytest.raises(FileExistsError, match='other/samples is not a link .*--out-dir'):
        link_dataset(dataset, tmp_path / 'other')
    with pytest.raises(FileNotFoundError, match='no folder .*none'):
        link_dataset(tmp_path / 'none', out)
