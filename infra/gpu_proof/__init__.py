"""Carries the proof on a GPU to a bare machine."""
