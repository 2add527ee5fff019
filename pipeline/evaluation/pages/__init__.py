"""What an evaluation shows to people: HTML pages and the model card.

The content of `metrics.json` or `compare.json` and the data set's images come in. Pages of one file each go out, with
nothing fetched from elsewhere.
"""
