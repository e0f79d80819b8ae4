"""What tools/benchmark.py times and counts: attention operators, their scaling, their arithmetic,
and the encoder."""
