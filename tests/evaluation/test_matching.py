import numpy as np

from stratified3d.evaluation.matching import count_matches, match_centers


def test_every_truth_is_used_once_and_the_nearest_is_taken():
    truth = np.array([[0.0, 0], [1.5, 0], [50, 0]])
    predicted = np.array([[1.4, 0], [1.3, 0], [0.1, 0], [50, 2.0]])
    assert match_centers(truth, predicted).tolist() == [1, 0, -1, -1]  # 2 m itself is no match


def test_no_truth_and_no_prediction():
    assert match_centers(np.zeros((0, 2)), np.zeros((2, 2))).tolist() == [-1, -1]
    assert match_centers(np.zeros((2, 2)), np.zeros((0, 2))).tolist() == []


def test_a_class_may_predict_only_as_often_as_it_has_truths():
    truth = np.array([[0.0, 0], [10, 0], [20, 0]])
    predicted = np.array([[10.5, 0], [99, 9], [0.5, 0], [20, 0]])
    scores = np.array([0.5, 0.9, 0.4, 0.8])
    found = count_matches(
        truth, ['car', 'car', 'bus'], predicted, scores, ['car', 'car', 'car', 'truck']
    )
    assert found == {
        'bus': (0, 1),
        'car': (1, 2),
    }  # the best two cars are the false one and the one at x = 10.5
