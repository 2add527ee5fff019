"""Optimisers by name, their parameter groups and schedules.

A network and a recipe come in. Torch optimisers go out. The door is `factory`.
"""
