"""What tools/benchmark.py times and counts: attention operators, their growth, their arithmetic,
and the encoder."""
