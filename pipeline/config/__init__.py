"""Configuration of a training run: recipes and their presets, checked on construction.

Names and values come in. Frozen dataclasses go out; every field is documented at the field. The door is `__all__`.
"""
