"""Which rows an epoch holds, and how often: expressions of columns, expected counts, and counts within one of them."""
