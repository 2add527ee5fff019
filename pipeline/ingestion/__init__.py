"""Raw images become a data set: sources are indexed, planned, checked, and written as Parquet shards.

The URI of a source comes in: folders, tars, CIFAR or ImageNet archives, WebDataset. A data set goes out whose bytes are
the same for every ingest of the same source. The door is `__all__`.
"""
