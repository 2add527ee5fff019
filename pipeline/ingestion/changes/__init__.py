"""What has changed in a source since an earlier ingest, and the data set that holds only that: a version."""
