"""CIFAR-10 in seconds: a published method beside this project's recipes."""
