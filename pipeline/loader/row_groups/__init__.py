"""Row groups of object storage on a node's disk: fetched before they are needed, removed when their next use is far."""
