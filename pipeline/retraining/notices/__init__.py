"""Notices of a retraining run: signed webhooks, a command hook, and an MLflow registry. None can fail a run."""
