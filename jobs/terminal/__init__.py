"""What all programs share at the terminal: errors and exit statuses, progress, interruption, commands that go on."""
