"""Programs that people run."""

from jobs import early

early.begin()
