"""Class predictions for a folder, an archive or a bucket of images, by Ray Data.

A model and the URI of any images come in. Parquet files with a row for each image go out; an image that cannot be used
gets a row that gives the reason.
"""
