"""Tables of more rows than fit in memory: sorted, hashed and kept in files that are mapped."""
