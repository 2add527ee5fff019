"""The native JPEG decoder: its C sources, and how they are compiled and loaded.

C sources and a compiler come in. A shared library goes out, called through ctypes by `pipeline.loader.decode`.
"""
