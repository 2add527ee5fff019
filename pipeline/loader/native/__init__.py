"""The native JPEG decoder of crops: its C sources, and how they are loaded.

C sources and a compiler come in. A shared library goes out, called through ctypes by `pipeline.loader.decode`.
"""
