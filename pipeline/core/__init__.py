"""What every room may use: errors, progress, keyed randomness, logs, processes, versions.

Nothing comes in but plain values. Out go the exception tree, random numbers that depend on (seed, epoch, key) alone,
and facts about this process and this installation. The door is `__all__`.
"""
