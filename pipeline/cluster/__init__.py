"""Ray: sessions, resources, tasks in order, and the progress of remote workers.

Functions and numbers of workers come in. Results go out in the order of the inputs, and errors as the exception that a
worker raised. The door is `__all__`.
"""
