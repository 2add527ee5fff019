"""Search over recipes: trials on held-out rows of train, and the page that compares them.

A recipe and ranges of its fields come in. The best recipe and a report go out. The door is `run`.
"""
