"""Streams of batches: made by threads of this process, or by Ray Data tasks."""
