"""Names of networks, checked without loading torch: this package's, and timm's where timm is installed."""

import difflib
import importlib.util
import re
from functools import cache
from pathlib import Path

from pipeline.config.choices import MODELS, unknown_choice
from pipeline.core.errors import RecipeError

TIMM = "timm:"
_REGISTERED = re.compile(r"^@register_model\ndef (\w+)\(", re.MULTILINE)


@cache
def timm_names() -> frozenset[str]:
    """Returns the names of timm's networks, none where timm isn't installed.

    They are read from its source in 0.1 s; `timm.list_models` would load torch first, which takes seconds.
    """
    found = importlib.util.find_spec("timm")
    if found is None or not found.origin:
        return frozenset()
    sources = (path.read_text(encoding="utf-8") for path in Path(found.origin).parent.joinpath("models").glob("*.py"))
    return frozenset(name for source in sources for name in _REGISTERED.findall(source))


def check_model(name: str, field: str = "model") -> None:
    """Raises RecipeError, with the nearest names, unless there is a network of this name. field: for the message.

    A name of timm's passes where timm isn't installed: a recipe may be read where it isn't carried out.
    """
    if name in MODELS:
        return
    if name.startswith(TIMM):
        plain = name.removeprefix(TIMM)
        if timm_names() and plain.partition(".")[0] not in timm_names():  # a tag names pretrained weights
            near = difflib.get_close_matches(plain, sorted(timm_names()), n=3)
            remedy = f"did you mean {' or '.join(TIMM + each for each in near)}?" if near else "see timm.list_models()"
            raise RecipeError(f"{field}={name!r} is unknown to timm; {remedy}")
        return
    if name.partition(".")[0] in timm_names():
        raise RecipeError(f"{field}={name!r} is unknown; did you mean {TIMM}{name}?")
    if difflib.get_close_matches(name, MODELS, n=1, cutoff=0.75) or not timm_names():
        raise RecipeError(unknown_choice(field, name, MODELS))
    near = difflib.get_close_matches(name, [*MODELS, *sorted(timm_names())], n=3, cutoff=0.5)
    said = [each if each in MODELS else TIMM + each for each in near]
    hint = f"did you mean {' or '.join(said)}? " if said else ""
    raise RecipeError(f"{field}={name!r} is unknown; {hint}there are {', '.join(MODELS)}, and timm:NAME")
