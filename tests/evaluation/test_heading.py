import math

import pytest

from stratified3d.evaluation.heading import axis_errors


def test_boxes_that_face_backwards_have_no_axis_error(prepared_set, write_results):
    path = write_results(dict(car=math.pi, pedestrian=0.3))
    errors = axis_errors(prepared_set, 'v1.0-mini', path)
    assert errors['car'] == pytest.approx(0, abs=1e-6)
    assert errors['pedestrian'] == pytest.approx(0.3, abs=1e-6)
    assert errors['bus'] == 1.0, 'nothing of it was found'


def test_error_is_at_most_a_quarter_turn(prepared_set, write_results):
    path = write_results(dict(car=math.pi - 0.2))
    assert axis_errors(prepared_set, 'v1.0-mini', path)['car'] == pytest.approx(0.2, abs=1e-6)


def test_results_without_boxes_are_refused(prepared_set, write_results):
    with pytest.raises(ValueError, match='no boxes'):
        axis_errors(prepared_set, 'v1.0-mini', write_results({}))
