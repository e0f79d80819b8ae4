"""Short trainings on the simulated nuScenes that change one setting at a time; see README.md."""
