"""Batches on their way to the device that trains on them."""
