"""A small detector, and frames of every size for it."""

import numpy as np
import pytest


@pytest.fixture(scope='session')
def detector(small_detector):
    """Random weights; a few hundred cells, so that scores do not tie."""
    from stratified3d.apis import init_detector

    return init_detector(small_detector / 'config.py', small_detector / 'model.pth', 'cpu')


@pytest.fixture(scope='session')
def package(detector, tmp_path_factory):
    """A compiled detector of minutes' work."""
    from stratified3d.deploy.export import export_detector

    path = tmp_path_factory.mktemp('package') / 'detector.pt2'
    export_detector(detector, path, bev_dtype='fp32', capacity=3000)
    return path


@pytest.fixture(scope='session')
def frame():
    """Makes the points [P, 5] of a random frame, a tenth of them out of range."""

    def make(count, seed=0):
        rng = np.random.default_rng(seed)
        places = rng.normal(0, (25, 25, 1), (count, 3)) - (0, 0, 1)
        rest = rng.uniform(0, (255, 0.2), (count, 2))
        return np.concatenate([places, rest], 1).astype(np.float32)

    return make


@pytest.fixture(scope='session')
def assert_same():
    """Compares detections by a tolerance, where equal scores may come in another order."""

    def compare(found, expected, tolerance=1e-4):
        assert len(found.boxes) == len(expected.boxes)
        np.testing.assert_allclose(found.scores, expected.scores, atol=tolerance)
        rest = list(range(len(found.boxes)))
        for box, score, name in zip(*expected):
            gaps = [np.abs(found.boxes[i] - box).max() + abs(found.scores[i] - score) for i in rest]
            best = int(np.argmin(gaps))
            assert gaps[best] <= 2 * tolerance and found.names[rest[best]] == name
            rest.pop(best)

    return compare


@pytest.fixture
def assert_memory_is_flat(frame):
    """Lets a detector see frames of many sizes and checks that the process does not grow."""
    import psutil

    def run(packaged):
        process = psutil.Process()
        frames = [frame(count) for count in (0, 1, 20, 500, 2000, 1500, 90, 1000)]
        used = []
        for i in range(56):
            packaged(frames[i % len(frames)])
            used.append(process.memory_info().rss)
        # the first two rounds fill the allocator's and the libraries' buffers
        grown = (max(used[-8:]) - max(used[:16])) / 2**20
        assert grown < 4, f'{grown:.1f} MiB more after 40 frames'

    return run
