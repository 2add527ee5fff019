"""Commands for workspaces of retraining runs."""
