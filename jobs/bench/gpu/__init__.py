"""Sections of `jobs/bench_gpu.py`: each measures one part of training on this machine, in a process of its own."""
