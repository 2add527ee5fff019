"""Commands that make data sets of data sets."""
