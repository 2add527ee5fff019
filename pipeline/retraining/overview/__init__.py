"""All retraining runs of a workspace: their list, one page, metrics for Prometheus, and what the next run will take."""
