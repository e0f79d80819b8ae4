import numpy as np
import pytest
from mmdet3d.registry import DATASETS
from mmengine.registry import DefaultScope

import stratified3d.plugin  # noqa: F401  (registers the parts of configs)
from stratified3d.datasets.custom.box_files import NamedBox
from stratified3d.datasets.custom.infos import create_custom_infos, list_frames
from stratified3d.datasets.io.info_files import read_info_file
from stratified3d.sensors import SENSORS, FrameChange, Sensor
from stratified3d.simulation.frame import simulate_frame

BRIGHT = Sensor('y', 1.84, 1.0)
BOX = NamedBox('car', (10.0, 0.0, 0.0, 4.0, 2.0, 2.0, 0.0, 1.0, float('nan')))
FAR = NamedBox('bus', (50.0, 0.0, 0.0, 4.0, 2.0, 2.0, 0.0, 0.0, 0.0))


def test_texts_beside_point_files_are_no_frames(tmp_path):
    clouds = {'a': 'a.BIN', 'b': 'b.pcd.bin', '12.049': '12.049.pcd', '12.149': '12.149.pcd'}
    for name in (*clouds.values(), 'a.txt', 'notes.csv', 'a.png'):
        (tmp_path / name).touch()
    assert {name: path.name for name, path in list_frames(tmp_path).items()} == clouds
    for name in clouds.values():
        (tmp_path / name).unlink()
    assert [path.name for path in list_frames(tmp_path).values()] == ['a.txt', 'notes.csv']


@pytest.fixture
def frames(tmp_path):
    """Three frames in three formats; each has seven points within BOX."""
    folder = tmp_path / 'raw'
    folder.mkdir()
    rng = np.random.default_rng(0)
    points = np.hstack([rng.uniform(-1, 1, (20, 3)) * [5, 5, 1], rng.random((20, 1))]).astype(
        np.float32
    )
    points[:7, :3] = [10, 0.5, 1]
    points.tofile(folder / 'a.bin')
    np.save(folder / 'b.npy', points)
    lines = [
        '# .PCD v0.7',
        'VERSION 0.7',
        'FIELDS x y z intensity',
        'SIZE 4 4 4 4',
        'TYPE F F F F',
        'COUNT 1 1 1 1',
        'WIDTH 20',
        'HEIGHT 1',
        'VIEWPOINT 0 0 0 1 0 0 0',
        'POINTS 20',
        'DATA ascii',
    ]
    (folder / 'c.pcd').write_text(
        '\n'.join(lines + [' '.join(map(str, row)) for row in points.tolist()]) + '\n'
    )
    return list_frames(folder)


def build(out, split='train', classes=('car',), **settings):
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        return DATASETS.build(
            dict(
                type='LidarFrames',
                data_root=f'{out}/',
                ann_file=f'infos_{split}.pkl',
                pipeline=[dict(type='LoadKeyframe', coord_type='LIDAR', load_dim=5, use_dim=5)],
                metainfo=dict(classes=list(classes)),
                **settings,
            )
        )


def test_every_format_becomes_the_same(frames, tmp_path):
    done = create_custom_infos(
        frames, {'a': [BOX, FAR], 'b': [BOX], 'c': []}, tmp_path / 'out', 'train', sensor=BRIGHT
    )
    assert (done.frames, done.boxes, done.empty) == (3, dict(bus=1, car=2), 1)
    np.testing.assert_allclose(done.sizes['car'], [4, 2, 2])
    content = [(tmp_path / f'out/points/{name}.bin').read_bytes() for name in 'abc']
    assert content[0] == content[1] == content[2]
    points = np.frombuffer(content[0], np.float32).reshape(20, 5)
    assert 100 < points[:, 3].max() <= 255 and not points[:, 4].any()
    infos = read_info_file(done.path)['data_list']
    assert [row['num_lidar_pts'] for info in infos for row in info['instances']] == [7, 0, 7]


def test_labels_follow_the_config(frames, tmp_path):
    create_custom_infos(
        frames, {'a': [BOX, FAR], 'b': [FAR]}, tmp_path / 'out', 'train', sensor=BRIGHT
    )
    dataset = build(tmp_path / 'out', classes=('car', 'bus'), min_points=0, with_velocity=True)
    truth = dataset.get_ann_info(0)
    assert truth['gt_labels_3d'].tolist() == [0, 1]
    np.testing.assert_array_equal(truth['gt_bboxes_3d'].tensor[0], BOX.numbers)
    assert build(tmp_path / 'out', classes=('bus', 'car')).get_ann_info(0)[
        'gt_labels_3d'
    ].tolist() == [1]
    assert build(tmp_path / 'out').get_ann_info(0)['gt_bboxes_3d'].tensor.shape == (1, 7)
    assert (
        build(tmp_path / 'out', test_mode=True)
        .get_data_info(1)['eval_ann_info']['gt_labels_3d']
        .tolist()
        == []
    )
    assert build(tmp_path / 'out', test_mode=True)[0]['points'].tensor.shape == (20, 5)


def test_splits_share_points_and_test_splits_have_no_truth(frames, tmp_path):
    out = tmp_path / 'out'
    create_custom_infos(frames, {'a': [BOX]}, out, 'train', chosen=['a'], sensor=BRIGHT)
    before = (out / 'points/a.bin').stat().st_mtime_ns
    create_custom_infos(frames, None, out, 'test', sensor=BRIGHT)
    assert (out / 'points/a.bin').stat().st_mtime_ns == before
    dataset = build(out, 'test', test_mode=True)
    assert len(dataset) == 3 and 'eval_ann_info' not in dataset.get_data_info(0)
    with pytest.raises(ValueError, match='has no annotations'):
        build(out, 'test')


def test_points_in_boxes_are_those_of_the_simulator(tmp_path):
    """The boxes of a simulated frame hold the points that the simulator counted."""
    frame = simulate_frame(3)
    frame['points'].astype(np.float32)[:, :4].tofile(tmp_path / 'f.bin')
    boxes = [
        NamedBox(name, tuple(map(float, box))) for name, box in zip(frame['names'], frame['boxes'])
    ]
    done = create_custom_infos(list_frames(tmp_path), {'f': boxes}, tmp_path / 'out', 'train')
    counts = np.array(
        [row['num_lidar_pts'] for row in read_info_file(done.path)['data_list'][0]['instances']]
    )
    assert len(counts) > 10 and done.empty == 0
    assert (
        np.median(np.abs(counts - frame['num_points'])) <= 1
    )  # points on a face fall to either side


def test_frames_of_another_sensor_become_those_of_nuscenes(tmp_path):
    frame = simulate_frame(3)
    to_file = FrameChange(SENSORS['nuscenes'], SENSORS['kitti'])
    (tmp_path / 'raw').mkdir()
    to_file.points_to_model(frame['points'])[:, :4].tofile(tmp_path / 'raw/f.bin')
    boxes = to_file.boxes_to_model(frame['boxes'])
    named = [NamedBox(name, tuple(map(float, box))) for name, box in zip(frame['names'], boxes)]
    frames = list_frames(tmp_path / 'raw')

    done = create_custom_infos(
        frames, {'f': named}, tmp_path / 'out', 'train', sensor=SENSORS['kitti']
    )
    points = np.fromfile(tmp_path / 'out/points/f.bin', np.float32).reshape(-1, 5)
    np.testing.assert_allclose(points[:, :4], frame['points'][:, :4], atol=1e-4)
    rows = read_info_file(done.path)['data_list'][0]['instances']
    kept = np.array([[*row['bbox_3d'][:6], *row['velocity']] for row in rows])
    np.testing.assert_allclose(kept, np.delete(frame['boxes'], 6, 1), atol=1e-5)
    turn = np.array([row['bbox_3d'][6] for row in rows]) - frame['boxes'][:, 6]
    np.testing.assert_allclose(np.sin(turn / 2), 0, atol=1e-5)
    assert done.empty == 0

    with pytest.raises(ValueError, match=r'forward .* another folder'):
        create_custom_infos(frames, None, tmp_path / 'out', 'test', sensor=Sensor('y', 1.84, 1.0))
    with pytest.raises(ValueError, match=r'give --sensor-height 1\.[67]\d --intensity-max 1$'):
        create_custom_infos(frames, None, tmp_path / 'auto', 'test', sensor=SENSORS['auto'])


def test_points_in_boxes_are_those_of_kitti(real_data, tmp_path):
    """The real frame: boxes from camera coordinates to the LiDAR's, holding the points that KITTI's
    info counts."""
    from mmdet3d.structures import Box3DMode, CameraInstance3DBoxes

    info = read_info_file(real_data / 'kitti_frame/000008.pkl')['data_list'][0]
    rows = [row for row in info['instances'] if row['bbox_label_3d'] >= 0]
    boxes = (
        CameraInstance3DBoxes(np.array([row['bbox_3d'] for row in rows]))
        .convert_to(Box3DMode.LIDAR, np.linalg.inv(info['images']['CAM2']['lidar2cam']))
        .tensor.tolist()
    )
    (tmp_path / 'raw').mkdir()
    (tmp_path / 'raw/000008.bin').symlink_to(real_data / 'kitti_frame/000008.bin')
    nan = (float('nan'), float('nan'))
    done = create_custom_infos(
        list_frames(tmp_path / 'raw'),
        {'000008': [NamedBox('car', (*b, *nan)) for b in boxes]},
        tmp_path / 'out',
        'train',
        sensor=BRIGHT,
    )
    counts = [
        row['num_lidar_pts'] for row in read_info_file(done.path)['data_list'][0]['instances']
    ]
    np.testing.assert_allclose(counts, [row['num_lidar_pts'] for row in rows], rtol=0.02)


@pytest.mark.parametrize(
    'boxes, settings, message',
    [
        ({'z': [BOX]}, {}, '1 frames have boxes but have no points: z'),
        ({}, dict(chosen=['a', 'q']), '1 frames are chosen but have no points: q'),
        ({}, dict(chosen=[]), 'no frame is chosen for the split train'),
        ({'a': [BOX]}, dict(classes=['tram']), 'no box is named tram; there are car'),
        (
            {},
            dict(sensor=Sensor('y', 1.84, 0.5)),
            r'a.bin: intensities run from 0.0\d* to 0.9\d*, not 0 to 0.5: .*--intensity-max',
        ),
    ],
)
def test_frames_that_do_not_fit_the_config_are_named(frames, tmp_path, boxes, settings, message):
    with pytest.raises(ValueError, match=message):
        create_custom_infos(frames, boxes, tmp_path / 'out', 'train', **settings)


def test_folders_of_others_are_left_alone(frames, tmp_path):
    with pytest.raises(ValueError, match='is not empty'):
        create_custom_infos(frames, {}, frames['a'].parent, 'train')
    create_custom_infos(frames, {}, tmp_path / 'out', 'train', sensor=BRIGHT)
    with pytest.raises(ValueError, match='intensity_max 1.0 instead of 2.0.*take another folder'):
        create_custom_infos(frames, {}, tmp_path / 'out', 'train', sensor=Sensor('y', 1.84, 2.0))
    with pytest.raises(FileNotFoundError, match='no .bin'):
        list_frames(tmp_path)
    np.save(frames['a'].with_suffix('.npy'), np.zeros((1, 4)))
    with pytest.raises(ValueError, match='a.bin and a.npy .*frame a'):
        list_frames(frames['a'].parent)


def test_what_cannot_be_trained_on_is_named(frames, tmp_path, prepared_set):
    create_custom_infos(frames, {'a': [FAR], 'b': [BOX]}, tmp_path / 'out', 'train', sensor=BRIGHT)
    with pytest.raises(ValueError, match='3 frames .* bus with 1 points'):
        build(tmp_path / 'out', classes=('bus',))
    with pytest.raises(ValueError, match='has no class tram; it has bus, car'):
        build(tmp_path / 'out', classes=('tram',))
    with pytest.raises(FileNotFoundError, match='infos_val.pkl: `python tools/convert_custom.py'):
        build(tmp_path / 'out', 'val')
    (tmp_path / 'out/infos_other.pkl').symlink_to(prepared_set / 'nuscenes_infos_val.pkl')
    with pytest.raises(ValueError, match="written for dataset 'nuscenes'"):
        build(tmp_path / 'out', 'other')


def test_classes_whose_boxes_all_lie_across_their_heading_are_named(frames, tmp_path):
    """Cars of 2 x 4 m, as if dx and dy were exchanged; one van as it should be clears its class;
    people may be wider than long."""
    across = BOX._replace(numbers=(10.0, 0.0, 0.0, 2.0, 4.0, 2.0, 0.0, 0.0, 0.0))
    person = NamedBox('person', (10.0, 0.0, 0.0, 0.5, 0.7, 2.0, 0.0, 0.0, 0.0))
    boxes = {
        'a': [across, across._replace(name='van'), person],
        'b': [across, BOX._replace(name='van')],
    }
    done = create_custom_infos(frames, boxes, tmp_path / 'out', 'train')
    assert done.sideways == ['car']
    assert not create_custom_infos(frames, {'a': [BOX]}, tmp_path / 'good', 'train').sideways
