"""Split a range into contiguous parts of even size."""


def even_split(num_items: int, num_parts: int, part: int) -> tuple[int, int]:
    """Returns [start, stop) of the `part`-th of `num_parts` contiguous parts, whose sizes differ by one at most."""
    # In integers: with floats, neighbouring parts could overlap or leave a gap.
    return part * num_items // num_parts, (part + 1) * num_items // num_parts
