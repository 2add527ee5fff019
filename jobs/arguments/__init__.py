"""Flags of the commands: parsing, help, errors in one line, and completion in shells."""
