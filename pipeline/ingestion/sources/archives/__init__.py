"""Archives of raw images, listed and read without unpacking them where that is possible."""
