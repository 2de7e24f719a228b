"""Random sketches of task vectors, by which models are compared without their weights."""
