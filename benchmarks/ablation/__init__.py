"""One setting changed at a time, trained briefly on the simulated nuScenes with paired seeds; see
README.md."""
