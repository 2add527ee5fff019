"""What training and evaluation leave: made up for a test, or read back."""
