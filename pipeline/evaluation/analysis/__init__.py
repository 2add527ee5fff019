"""Analyses beside the plain metrics of an evaluation: explanations, corruptions, label issues, latency.

A model and its predictions come in. Plain values that belong into `metrics.json` go out.
"""
