"""A data set becomes batches: in an order that anyone can recompute, decoded and augmented, each row exactly once.

The URI of a data set and a seed come in. Batches of pixels and labels go out, the same for any number of workers. The
door is `__all__`.
"""
