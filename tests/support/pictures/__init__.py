"""Pictures and data sets to test with: made here, damaged on purpose, or read from the archives beside the project."""
