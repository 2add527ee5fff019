"""Which images of each batch are trained on: chosen by a small network before the run's first step."""
