"""A finished data set, read: manifest, Parquet shards, rows, and the cache of row groups.

The URI of a data set comes in. Manifests, tables, and the stored bytes of single rows go out, each checked against its
checksum. The door is `__all__`.
"""
