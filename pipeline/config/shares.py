"""Shares of a mixture's sources: constant, or changing from step to step."""

import math
from dataclasses import dataclass
from itertools import pairwise

from pipeline.core.errors import RecipeError

_EXAMPLE = '"photos=0.7, drawings=0.3", or "photos=1, drawings=0; 5000: photos=1, drawings=1"'


@dataclass(frozen=True)
class Stage:
    """The shares of the sources at a step; between two stages they change linearly."""

    step: int
    """Step, counted over all epochs, from 0."""

    shares: tuple[tuple[str, float], ...]
    """(source, share); they needn't add up to 1."""


def parse_shares(field_name: str, text: str) -> tuple[Stage, ...]:
    """Returns the stages that a text says: `a=0.7, b=0.3`, or several with `; STEP:` between them.

    Raises RecipeError with the field, the text and what is wrong.
    """
    stages = [_stage(field_name, text, part, first=number == 0) for number, part in enumerate(text.split(";"))]
    names = [name for name, _ in stages[0].shares]
    for before, after in pairwise(stages):
        if after.step <= before.step:
            raise _error(field_name, text, f"step {after.step} doesn't come after step {before.step}")
        if sorted(name for name, _ in after.shares) != sorted(names):
            raise _error(field_name, text, f"step {after.step} must name {', '.join(names)}, each once")
    return tuple(stages)


def _stage(field_name: str, text: str, part: str, first: bool) -> Stage:
    step, colon, rest = part.rpartition(":")
    if colon and not step.strip().isdecimal():
        raise _error(field_name, text, f"{step.strip() or part.strip()!r} is no step")
    if not colon and not first:
        raise _error(field_name, text, f"{part.strip()!r} says no step")
    shares: dict[str, float] = {}
    for each in rest.split(","):
        name, equals, number = (word.strip() for word in each.partition("="))
        try:
            share = float(number)
        except ValueError:
            share = math.nan
        if not name or not equals or not (0 <= share < math.inf):
            raise _error(field_name, text, f"{each.strip()!r} is no source with a share of 0 or more")
        if name in shares:
            raise _error(field_name, text, f"{name} is named twice")
        shares[name] = share
    if not sum(shares.values()) > 0:
        raise _error(field_name, text, "one share must be above 0")
    return Stage(int(step) if colon else 0, tuple(shares.items()))


def _error(field_name: str, text: str, what: str) -> RecipeError:
    return RecipeError(f"{field_name}={text!r}: {what}; write {_EXAMPLE}")
