"""`python -m stratified3d.doctor`: what is installed, and whether it computes right results."""
