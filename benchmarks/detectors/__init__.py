"""Benchmarks of whole detectors."""
