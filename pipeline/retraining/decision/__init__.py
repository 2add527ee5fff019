"""The decision of a retraining run: the comparison of champion and challenger, the gate, drift, and the page of it."""
