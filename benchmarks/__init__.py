"""Benchmarks of operators, detectors and the simulation, and the ablation."""
