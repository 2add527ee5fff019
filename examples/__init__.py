"""Programs that show the library in use; see README.md in this folder."""
