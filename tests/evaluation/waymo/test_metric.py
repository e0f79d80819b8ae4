"""The registered metric against score_waymo, in one process and in two, and its errors."""

import pickle
import traceback

import numpy as np
import pytest
import torch
from mmdet3d.registry import METRICS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.evaluator import Evaluator
from mmengine.structures import InstanceData
from torch import distributed, multiprocessing

from stratified3d.evaluation.waymo.boxes import SIGN
from stratified3d.evaluation.waymo.files import make_messages, read_objects, write_objects
from stratified3d.evaluation.waymo.metric import WaymoLevelMetric
from stratified3d.evaluation.waymo.score import mean_scores, score_waymo
from stratified3d.evaluation.waymo.synthetic_boxes import synthetic_frames

# the model's order of classes may differ from that of Waymo's info files
META = dict(classes=['Cyclist', 'Car', 'Pedestrian'])
LABELS = {4: 0, 1: 1, 2: 2}
INFO_LABELS = {1: 0, 2: 1, 4: 2}
FRAMES = 5


@pytest.fixture(scope='module')
def boxes():
    """Predictions and ground truths without signs or no-label zones, in float32; the fourth frame
    has no prediction."""
    found, true = synthetic_frames(FRAMES, 30, 12, seed=4, reach=25)
    for part in (found, true):
        part.boxes = part.boxes.astype(np.float32).astype(np.float64)
        part.types = np.where(part.types == SIGN, 1, part.types).astype(np.uint8)
    found.in_no_label_zone = np.zeros(len(found), bool)
    return found.take(found.timestamp != 300_000), true


def bottom(box):
    """[N, 7] with z of the center to z of the bottom."""
    return box - [0, 0, 1, 0, 0, 0, 0] * box[:, 5:6] / 2


@pytest.fixture(scope='module')
def files(boxes, tmp_path_factory):
    """infos.pkl and ground_truths.bin of the ground truths."""
    folder, (_, true) = tmp_path_factory.mktemp('waymo'), boxes
    write_objects(folder / 'ground_truths.bin', make_messages(true))
    frames = []
    for i in range(FRAMES):
        here = true.take(true.timestamp == 100_000 * i)
        instances = [
            dict(
                bbox_3d=box.tolist(),
                bbox_label_3d=INFO_LABELS[kind],
                num_lidar_pts=int(points),
                difficulty=int(level),
            )
            for box, kind, points, level in zip(
                bottom(here.boxes), here.types, here.num_points, here.difficulty
            )
        ]
        frames.append(
            dict(
                sample_idx=70 + i,
                context_name='segment-0',
                timestamp=100_000 * i,
                instances=instances,
                lidar_points=dict(lidar_path=f'{i}.bin'),
            )
        )
    (folder / 'infos.pkl').write_bytes(
        pickle.dumps(dict(metainfo=dict(dataset='waymo'), data_list=frames))
    )
    return folder


def results(found, frames=range(FRAMES)):
    """What a model hands over for each frame."""
    for i in frames:
        here = found.take(found.timestamp == 100_000 * i)
        labels = torch.tensor([LABELS[kind] for kind in here.types.tolist()], dtype=torch.long)
        yield dict(
            sample_idx=i,
            context_name='segment-0',
            timestamp=100_000 * i,
            pred_instances_3d=dict(
                bboxes_3d=LiDARInstance3DBoxes(torch.from_numpy(bottom(here.boxes))),
                labels_3d=labels,
                scores_3d=torch.from_numpy(np.array(here.scores)),
            ),
        )


def build(meta=META, **kwargs):
    metric = METRICS.build(
        dict(
            type='WaymoLevelMetric',
            **{k: str(v) if k != 'format_only' else v for k, v in kwargs.items()},
        )
    )
    metric.dataset_meta = meta
    return metric


def evaluate(metric, samples):
    samples = list(samples)
    for sample in samples:
        metric.process({}, [sample])
    return metric.evaluate(len(samples))


def assert_scores(values, expected):
    for name, score in expected.items():
        for key, value in score.items():
            assert values[f'waymo/{name}_{key}'] == pytest.approx(value, abs=1e-5), name
    for level, score in mean_scores(expected).items():
        assert values[f'waymo/mAPH_{level}'] == pytest.approx(score['APH'], abs=1e-5)
    assert len(values) == 2 * len(expected) + 4


def test_metric_equals_the_score_of_the_arrays(boxes, files, tmp_path):
    expected = score_waymo(*boxes)
    assert 0.1 < expected['VEHICLE_LEVEL_2']['APH'] < expected['VEHICLE_LEVEL_1']['AP'] < 0.9
    from_infos = build(ann_file=files / 'infos.pkl', bin_file=tmp_path / 'new/found.bin')
    assert_scores(evaluate(from_infos, results(boxes[0])), expected)
    # again, as after each epoch of training
    assert_scores(evaluate(from_infos, results(boxes[0])), expected)
    assert_scores(evaluate(build(gt_file=files / 'ground_truths.bin'), results(boxes[0])), expected)
    both = build(ann_file=files / 'infos.pkl', gt_file=files / 'ground_truths.bin')
    assert_scores(evaluate(both, results(boxes[0], [2, 0, 4, 3, 1])), expected)
    written = score_waymo(read_objects(tmp_path / 'new/found.bin'), boxes[1])
    assert_scores(evaluate(from_infos, results(boxes[0])), written)


def test_metric_in_an_evaluator(boxes, files):
    """With the samples that a detector hands over, two to a batch."""
    evaluator = Evaluator([build(ann_file=files / 'infos.pkl')])
    evaluator.dataset_meta = META
    samples = []
    for result in results(boxes[0]):
        found = InstanceData(**result.pop('pred_instances_3d'))
        samples.append(Det3DDataSample(metainfo=result, pred_instances_3d=found))
    for i in range(0, FRAMES, 2):
        evaluator.process(samples[i : i + 2])
    assert_scores(evaluator.evaluate(FRAMES), score_waymo(*boxes))


def test_two_processes_score_as_one(boxes, files, tmp_path):
    """Three frames in one and two, padded to three, in the other, as a distributed sampler deals
    them."""
    expected = evaluate(build(ann_file=files / 'infos.pkl'), results(boxes[0]))

    def process(rank):
        try:
            torch.set_num_threads(1)
            distributed.init_process_group(
                'gloo', init_method=f'file://{tmp_path / "store"}', rank=rank, world_size=2
            )
            metric = build(ann_file=files / 'infos.pkl')
            for sample in results(boxes[0], [(0, 2, 4), (1, 3, 0)][rank]):
                metric.process({}, [sample])
            torch.save(metric.evaluate(FRAMES), tmp_path / f'{rank}.pth')
            distributed.destroy_process_group()
        except Exception:  # a forked test must not go on as pytest
            traceback.print_exc()
            raise

    multiprocessing.start_processes(process, nprocs=2, start_method='fork')
    assert torch.load(tmp_path / '0.pth') == torch.load(tmp_path / '1.pth') == expected


def test_untested_frames_do_not_count(boxes, files):
    found, true = (part.take(part.timestamp <= 100_000) for part in boxes)
    metric = build(ann_file=files / 'infos.pkl')
    assert_scores(evaluate(metric, results(found, range(2))), score_waymo(found, true))


def test_frames_without_predictions_or_ground_truths_score_zero(boxes, files):
    nothing = boxes[0].take(slice(0))
    assert set(evaluate(build(ann_file=files / 'infos.pkl'), results(nothing)).values()) == {0}
    content = pickle.loads((files / 'infos.pkl').read_bytes())
    for frame in content['data_list']:
        frame['instances'] = []
    (files / 'empty.pkl').write_bytes(pickle.dumps(content))
    assert set(evaluate(build(ann_file=files / 'empty.pkl'), results(boxes[0])).values()) == {0}


def test_results_of_the_test_split_are_only_written(boxes, tmp_path):
    metric = build(bin_file=tmp_path / 'found.bin', format_only=True)
    assert evaluate(metric, results(boxes[0])) == {}
    assert len(read_objects(tmp_path / 'found.bin')) == len(boxes[0])


def test_bad_arguments_classes_and_results_are_refused(boxes, files, tmp_path):
    for arguments, message in (
        (dict(), 'ann_file .* or gt_file'),
        (dict(format_only=True), 'set bin_file'),
    ):
        with pytest.raises(ValueError, match=message):
            WaymoLevelMetric(**arguments)
    with pytest.raises(FileNotFoundError, match='none.bin'):
        build(gt_file=tmp_path / 'none.bin')
    with pytest.raises(ValueError, match="the class 'bus'"):
        build(dict(classes=['bus']), gt_file=files / 'ground_truths.bin')
    (first,) = results(boxes[0], [0])
    with pytest.raises(ValueError, match='2 results of 1 '):
        evaluate(build(ann_file=files / 'infos.pkl'), [first, first])
    with pytest.raises(ValueError, match=r"\('segment-0', 1\) .* 5 frames of .*infos.pkl"):
        evaluate(build(ann_file=files / 'infos.pkl'), [dict(first, timestamp=1)])
    with pytest.raises(ValueError, match='meta_keys'):
        evaluate(build(gt_file=files / 'ground_truths.bin'), [dict(first, context_name=None)])


def test_info_files_without_point_counts_or_segments_are_refused(files, tmp_path):
    for change, message in (
        (
            lambda frame: frame['instances'][0].pop('num_lidar_pts'),
            'frame 70 .*num_lidar_pts',
        ),
        (lambda frame: frame.pop('context_name'), "has no 'context_name'"),
    ):
        content = pickle.loads((files / 'infos.pkl').read_bytes())
        change(content['data_list'][0])
        (tmp_path / 'infos.pkl').write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=f'infos.pkl: .*{message}'):
            build(ann_file=tmp_path / 'infos.pkl')


def test_ground_truth_of_the_real_info_file_scores_one(real_data):
    """A frame that mmdet3d's converter wrote: its one ground truth, predicted, scores 1."""
    path = real_data / 'waymo/waymo_infos_val.pkl'
    frame = pickle.loads(path.read_bytes())['data_list'][0]
    box = torch.tensor([frame['instances'][0]['bbox_3d']])
    found = dict(
        bboxes_3d=LiDARInstance3DBoxes(box),
        labels_3d=torch.tensor([1]),
        scores_3d=torch.tensor([0.7]),
    )
    scores = evaluate(
        build(ann_file=path),
        [
            dict(
                context_name=frame['context_name'],
                timestamp=frame['timestamp'],
                pred_instances_3d=found,
            )
        ],
    )
    assert (
        scores['waymo/VEHICLE_LEVEL_1_APH']
        == scores['waymo/VEHICLE_[0,30)_LEVEL_2_AP']
        == pytest.approx(1)
    )
    assert (
        scores['waymo/mAP_LEVEL_1'] == pytest.approx(1 / 3)
        and scores['waymo/CYCLIST_LEVEL_1_AP'] == 0
    )
