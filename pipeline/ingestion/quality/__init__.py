"""The quality of a data set: facts of each image's pixels, statistics, duplicates across splits, and `quality.html`."""
