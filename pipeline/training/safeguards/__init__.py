"""Safeguards of a run: what stops, restarts or saves it when something goes wrong.

Losses, heartbeats, exceptions of workers and preemption notices come in. Out go skipped steps, an ended process for Ray
to restart, the error that ends the run, or a checkpoint before a node is taken away.
"""
