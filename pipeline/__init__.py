"""Images in, a trained and evaluated classifier out: sources -> ingest -> order -> loader -> train -> report."""
