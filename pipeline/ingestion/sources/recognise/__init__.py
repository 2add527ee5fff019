"""What files and folders of a source are, by their names and first bytes: images, splits, classes, or to be ignored."""
