"""Tables of images: of file names and labels beside a folder of images, and of the images themselves (Parquet)."""
