"""A recipe is carried out: the training loop, its optimisers, checkpoints, trackers, and searches over recipes.

A `TrainJob` comes in. A run goes out: weights, history, predictions, and a report, all below the run's URI. The door is
`__all__`.
"""
