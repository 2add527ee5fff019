"""Native code for pixels: its C sources, and how such sources are compiled and loaded.

C sources and a compiler come in. Functions on images go out, which do to the bit what libraries do, in less time.
"""
