"""A trained model leaves for others: the files of a repository of models, and their upload."""
