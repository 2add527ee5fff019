"""Networks, their losses and weight averages, and what is kept of them: checkpoints and finished models.

A recipe or the URI of a run comes in. Networks, and files of tensors that never run code when opened, go out. The door
is `__all__`.
"""
