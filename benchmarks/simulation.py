"""How fast sweeps are cast.

    python -m benchmarks.simulation [--workers 2] [--seconds 10]

prints sweeps of 34,688 rays per second, over all layouts in turn: ray casting alone, and whole
sweeps (world, rays, noise, motion compensation), without disk.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time

import numpy as np

from stratified3d.simulation.layouts.catalog import LAYOUTS, build_scene
from stratified3d.simulation.physics.lidar import SWEEP_SECONDS, Noise, fire


def _count(arguments: tuple[float, bool, int]) -> tuple[int, float]:
    """Sweeps done in about that many seconds by one process."""
    seconds, whole, seed = arguments
    scenes = [build_scene(layout, (seed, 1), 2.0) for layout in LAYOUTS]
    rng = np.random.Generator(np.random.Philox(seed))
    inputs = [
        (scene.lidar_pose(1.0 + scene.sensor.delays), scene.primitives_at(1.0)) for scene in scenes
    ]
    fire(scenes[0].sensor, *inputs[0], scenes[0].ground.coefficients)
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        for scene, (poses, primitives) in zip(scenes, inputs):
            if whole:
                scene.sweep(1.0 + (count % 10) * SWEEP_SECONDS, rng, Noise())
            else:
                fire(scene.sensor, poses, primitives, scene.ground.coefficients)
            count += 1
    return count, time.perf_counter() - begin


def measure_speed(workers: int, seconds: float, whole: bool) -> float:
    """Sweeps per second of all workers together."""
    _count((0.0, whole, 0))  # compiles, so that forked workers have it
    with multiprocessing.get_context('fork').Pool(workers) as pool:
        return sum(
            count / spent
            for count, spent in pool.map(_count, [(seconds, whole, i) for i in range(workers)], 1)
        )


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--workers', type=int, default=multiprocessing.cpu_count())
    parser.add_argument('--seconds', type=float, default=10.0)
    args = parser.parse_args()
    for whole, label in ((False, 'ray casting alone'), (True, 'whole sweeps')):
        speed = measure_speed(args.workers, args.seconds, whole)
        print(f'{label}: {speed:.0f} sweeps/s with {args.workers} workers')
