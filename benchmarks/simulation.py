"""Measure how many sweeps per second the simulation casts.

A sweep has 34,688 rays. All layouts take turns. Prints the speed of ray casting alone, and of whole
sweeps (world, rays, noise, motion compensation), without writing to disk.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time

import numpy as np

from stratified3d.simulation.layouts.catalog import LAYOUTS, build_scene
from stratified3d.simulation.physics.lidar import fire
from stratified3d.simulation.physics.scanners import SWEEP_SECONDS, Noise


def _count(arguments: tuple[float, bool, int]) -> tuple[int, float]:
    """Number of sweeps that one process casts in about that many seconds, and the exact seconds."""
    seconds, whole, seed = arguments
    rng = np.random.Generator(np.random.Philox(seed))
    scenes = [build_scene(layout, (seed, 1), 2.0) for layout in LAYOUTS]
    inputs = []
    for scene in scenes:
        poses = scene.lidar_pose(1.0 + scene.sensor.delays)
        inputs.append((poses, scene.primitives_at(1.0)))
    fire(scenes[0].sensor, *inputs[0], scenes[0].ground.coefficients)  # compiles

    count = 0
    begin = time.perf_counter()
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
    jobs = [(seconds, whole, seed) for seed in range(workers)]
    with multiprocessing.get_context('fork').Pool(workers) as pool:
        counts = pool.map(_count, jobs, 1)
    return sum(count / spent for count, spent in counts)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--workers',
        type=int,
        default=multiprocessing.cpu_count(),
        help='processes (default: one per core)',
    )
    parser.add_argument(
        '--seconds', type=float, default=10.0, help='of each measurement (default: %(default)s)'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    for whole, label in ((False, 'ray casting alone'), (True, 'whole sweeps')):
        speed = measure_speed(args.workers, args.seconds, whole)
        print(f'{label}: {speed:.0f} sweeps/s with {args.workers} workers')


if __name__ == '__main__':
    main()
