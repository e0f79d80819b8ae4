"""Stratified attention in the memory layouts of other detectors and libraries."""
