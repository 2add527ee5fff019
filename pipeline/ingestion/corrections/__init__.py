"""Corrections from people: a CSV with a verdict on each doubtful label becomes a version of the data set."""
