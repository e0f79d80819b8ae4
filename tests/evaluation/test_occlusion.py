import pytest

from stratified3d.evaluation.occlusion import HIDDEN_LEVELS, occluded_ap


def is_hidden(annotation):
    return annotation['visibility_token'] in HIDDEN_LEVELS


def is_seen(annotation):
    """Objects without a point are not asked for, and so their detections are wrong."""
    return annotation['num_lidar_pts'] > 0


def test_perfect_boxes_have_an_ap_of_one(prepared_set, write_results):
    scores = occluded_ap(prepared_set, 'v1.0-mini', write_results(dict(car=0.0), is_seen))
    assert scores['car'] == pytest.approx(1.0)
    assert scores['pedestrian'] == 0.0


def test_only_hidden_objects_count(prepared_set, write_results):
    path = write_results(dict(car=0.0), lambda annotation: not is_hidden(annotation))
    assert occluded_ap(prepared_set, 'v1.0-mini', path)['car'] == 0.0
    path = write_results(
        dict(car=0.0), lambda annotation: is_hidden(annotation) and is_seen(annotation)
    )
    assert occluded_ap(prepared_set, 'v1.0-mini', path)['car'] == pytest.approx(1.0)


def test_boxes_where_nothing_is_are_wrong(prepared_set, write_results):
    path = write_results(dict(car=0.0))
    path.write_text(path.read_text().replace('"car"', '"pedestrian"'))
    scores = occluded_ap(prepared_set, 'v1.0-mini', path)
    assert scores['car'] == 0.0
    assert scores['pedestrian'] < 0.2
