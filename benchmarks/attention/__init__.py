"""Benchmarks of attention operators and of the sparse encoder."""
