"""Removal for good: rows leave the shards of all versions in a folder, and a scan proves that their bytes are gone."""
