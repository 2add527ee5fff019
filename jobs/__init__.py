"""Programs that people run."""

from jobs.terminal import early

early.begin()
