"""Models in use: what they answered, labels that arrive late, and the rules that promote, drop or take back a model."""
