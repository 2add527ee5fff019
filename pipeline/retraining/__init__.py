"""A better model goes live: retraining runs, the promotion test, drift checks and the model registry.

New images and a champion come in. Either a new version that the registry serves, or the reason why there is none, goes
out. The door is `__all__`.
"""
