"""Data sets in the form in which their authors publish them, where that is none of the general layouts."""
