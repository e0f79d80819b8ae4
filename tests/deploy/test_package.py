"""Files that `stratified3d export` writes: what they hold, who can read them, and their boxes."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from stratified3d.apis import detect
from stratified3d.deploy import load, read_info
from stratified3d.deploy.package import KEY, PackagedDetector, host_instructions, release
from stratified3d.sensors import Sensor

INFO = dict(
    classes=['car'],
    device='cpu',
    capacity=None,
    overflow='error',
    versions=dict(torch=release(torch.__version__), stratified3d='0'),
)


def fake_package(path, **changes):
    with zipfile.ZipFile(path, 'w') as archive:
        content = json.dumps({KEY: json.dumps(INFO | changes)})
        archive.writestr('data/aotinductor/model/abc.wrapper_metadata.json', content)
    return path


def test_package_of_another_torch_is_refused(tmp_path):
    path = fake_package(tmp_path / 'a.pt2', versions=dict(torch='1.0.0'))
    with pytest.raises(ValueError, match='compiled by torch 1.0.0'):
        load(path)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a CUDA device')
def test_package_for_cuda_is_refused_without_one(tmp_path):
    path = fake_package(tmp_path / 'a.pt2', device='cuda')
    with pytest.raises(ValueError, match='no CUDA device'):
        load(path)


def test_package_of_another_processor_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match='compiled for arm64 NEON and this is'):
        load(fake_package(tmp_path / 'a.pt2', processor='arm64 NEON'))
    monkeypatch.setattr('stratified3d.deploy.package.processor_of', lambda device: 'x86_64 AVX2')
    with pytest.raises(ValueError, match='for x86_64 AVX512 and this is x86_64 AVX2'):
        load(fake_package(tmp_path / 'a.pt2', processor='x86_64 AVX512'))
    # older instructions run on newer processors
    monkeypatch.setattr('stratified3d.deploy.package.processor_of', lambda device: 'x86_64 AVX512')
    monkeypatch.setattr('stratified3d.deploy.package._load_program', lambda path: 'program')
    load(fake_package(tmp_path / 'a.pt2', processor='x86_64 AVX2'))


def test_package_with_instructions_that_are_not_here_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr('stratified3d.deploy.package._load_program', lambda path: 'program')
    here = dict(avx2=True, avx512_f=True, avx512_bf16=False, sse4a=True, l2_cache_size=2**20)
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: here)
    load(fake_package(tmp_path / 'a.pt2', instructions=['avx2']))
    newer = fake_package(tmp_path / 'b.pt2', instructions=['amx_bf16', 'avx2', 'avx512_bf16'])
    with pytest.raises(ValueError, match='processor with amx_bf16, avx512_bf16, which'):
        load(newer)
    assert host_instructions() == ['avx2', 'avx512_f']
    monkeypatch.delattr(torch.cpu, 'get_capabilities')  # of an older torch
    assert host_instructions() == []


def test_a_program_says_which_instructions_it_is_compiled_for(detector):
    from stratified3d.deploy.export import build_program

    _, info = build_program(detector, torch.float32)
    assert info['instructions'] == host_instructions()


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='no package'):
        load(tmp_path / 'none.pt2')
    (tmp_path / 'text.pt2').write_text('no archive')
    with zipfile.ZipFile(tmp_path / 'zip.pt2', 'w') as archive:
        archive.writestr('a', 'b')
    for name in ('text.pt2', 'zip.pt2'):
        with pytest.raises(ValueError, match='not a package'):
            load(tmp_path / name)


@pytest.mark.parametrize(
    'settings, key',
    [
        (dict(out='a.onnx'), 'ends in .pt2'),
        (dict(capacity=0), 'capacity'),
        (dict(overflow='wrap'), 'overflow'),
        (dict(bev_dtype='fp8'), 'bev_dtype'),
        (dict(capacity=9, num_points=0), 'num_points'),
        (dict(num_points=9), 'needs a capacity'),
        (dict(capacity=9, num_points=9), 'cannot be compiled for a CPU'),
    ],
)
def test_settings_are_checked_before_the_work(detector, settings, key):
    from stratified3d.deploy.export import export_detector

    with pytest.raises(ValueError, match=key):
        export_detector(detector, settings.pop('out', 'a.pt2'), **settings)


def test_command_names_what_is_wrong(root, tmp_path):
    command = [sys.executable, '-W', 'ignore', root / 'tools/export.py']
    result = subprocess.run(
        [*command, 'none.py', 'none.pth', tmp_path / 'a.pt2'],
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert result.returncode and result.stderr == 'export.py: there is no config none.py\n'


def test_own_vehicle_is_left_out_as_by_detect():
    boxes = torch.tensor([[0.5, 0, -2, 4, 2, 1.5, 0, 0, 0], [9, 0, -2, 4, 2, 1.5, 0, 0, 0]])

    def find(points):
        return boxes, torch.tensor([0.9, 0.5]), torch.tensor([0, 0]), 2, 1

    packaged = PackagedDetector(find, INFO | dict(sensor='nuscenes', largest=1e4))
    points = np.zeros((3, 4))
    for sensor in (None, 'nuscenes', 'kitti'):
        found = packaged(points, sensor)
        assert found.scores.tolist() == [0.5] and found.names == ['car']
    above_others = Sensor('y', 1.84, 255.0, drop_own=False)
    assert len(packaged(points, above_others).boxes) == 2
    packaged.info['sensor'] = dict(forward='y', height=1.84, drop_own=False)
    assert len(packaged(points).boxes) == 2


@pytest.mark.slow
@pytest.mark.parametrize('count', [0, 1, 2, 7, 300, 1500])
def test_package_equals_the_model(detector, package, frame, assert_same, count, monkeypatch):
    monkeypatch.setattr(detector, 'bev_dtype', 'fp32')
    points = frame(count)
    assert_same(load(package)(points), detect(detector, points))


@pytest.mark.slow
def test_package_says_what_it_is(detector, package):
    info = read_info(package)
    assert info['classes'] == detector.class_names
    assert info['point_cloud_range'] == list(detector.voxel_encoder.point_cloud_range)
    assert info['sensor']['forward'] == 'y' and info['capacity'] == 3000


@pytest.mark.slow
def test_bad_frames_are_one_sentence(package, frame):
    packaged = load(package)
    with pytest.raises(ValueError, match='capacity of 3000'):
        packaged(frame(60000))
    with pytest.raises(ValueError, match='points are'):
        packaged(np.zeros((5, 3), np.float32))
    with pytest.warns(UserWarning, match='5 points have NaN'):
        assert len(packaged(np.full((5, 4), np.nan, np.float32)).boxes) == 0


@pytest.mark.slow
def test_frames_in_a_row_do_not_fill_the_memory(package, assert_memory_is_flat):
    assert_memory_is_flat(load(package))


@pytest.mark.slow
def test_package_runs_without_openmmlab(package, run_without, tmp_path, frame):
    np.save(tmp_path / 'points.npy', frame(400))
    code = (
        'import numpy, stratified3d.deploy as d, sys\n'
        'boxes, scores, names = d.load(sys.argv[1])(numpy.load(sys.argv[2]))\n'
        'print(len(boxes), scores[0], names[0])'
    )
    result = run_without(('numba', 'scipy'), '-c', code, package, tmp_path / 'points.npy')
    assert result.returncode == 0, result.stderr
    expected = load(package)(frame(400))
    assert result.stdout.split()[0] == str(len(expected.boxes))
