"""The layer that each parameter belongs to, counted from the first, for rates that differ by layer."""

import re
from typing import Any

from torch import nn

from pipeline.core.errors import RecipeError

_STEM = re.compile(r"^(conv1|bn1)\.")
_BLOCK = re.compile(r"^layer(\d+)\.(\d+)\.")


def layer_numbers(net: nn.Module) -> dict[str, int]:
    """Returns {name of a parameter: number of its layer}: the stem is 0, then come the blocks, and the last layer.

    Networks of timm say themselves what their layers are. Raises RecipeError for networks without known blocks.
    """
    matcher: Any = getattr(net, "group_matcher", None)
    if matcher is not None:
        from timm.models import group_parameters

        found: dict[str, int] = group_parameters(net, matcher(coarse=False), reverse=True)
        return found
    names = [name for name, _ in net.named_parameters()]
    blocks = sorted({tuple(map(int, match.groups())) for name in names if (match := _BLOCK.match(name))})
    if not blocks:
        raise RecipeError(
            f"{type(net).__name__} has no blocks that are known here, which layer_decay, frozen_epochs and thaw_epochs "
            "need; set layer_decay=1, frozen_epochs=0 and thaw_epochs=0"
        )
    numbers = {block: number for number, block in enumerate(blocks, 1)}
    return {name: _number(name, numbers) for name in names}


def _number(name: str, blocks: dict[tuple[int, ...], int]) -> int:
    if match := _BLOCK.match(name):
        return blocks[tuple(map(int, match.groups()))]
    return 0 if _STEM.match(name) else len(blocks) + 1
