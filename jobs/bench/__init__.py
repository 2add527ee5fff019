"""Benchmarks: each compares with a physical limit or a peer in the same run."""
