"""The candidate that waits for a decision, and the models that no program may promote again."""

from itertools import takewhile

from pipeline.models import checkpoint
from pipeline.retraining import registry

DAYS_OF_A_CANDIDATE = 30
"""Days for which no retraining run replaces a candidate that waits: else the evidence on each would begin anew."""


def pending_candidate(place: str) -> registry.Move | None:
    """Returns the newest move of `candidate` if it waits for a decision, None if there is none.

    None waits where the version has been champion since it was nominated, or the newest move is none of a nomination: a
    dropped candidate's alias names the champion.
    """
    newest = registry.current(place, registry.CANDIDATE)
    if newest is None or not newest.against:
        return None
    later = takewhile(lambda move: move.number > newest.against, registry.newest_first(place))
    return None if any(move.version == newest.version for move in later) else newest


def needs_labels(place: str) -> bool:
    """Whether a program may promote on labels alone: a champion has gone back, and neither a review nor a person has
    made one live since.

    What made the gate wrong may still be there, such as wrong labels in the source, and each run trains other weights.
    """
    kinds = (move.mark[0] for move in registry.newest_first(place))
    return next((kind for kind in kinds if kind != "night"), "") == "return"


def sent_back(place: str) -> set[str]:
    """Returns the SHA-256 of the weights that no program may promote: those that a review has taken back or dropped.

    A person who promotes such a version afterwards allows it again.
    """
    steps = list[tuple[registry.Move, str]]()  # moves, and the version that the alias named before each
    for alias in (registry.CHAMPION, registry.CANDIDATE):
        moves = registry.history(place, alias)
        steps += zip(moves, ["", *(each.version for each in moves)], strict=False)
    found = set[str]()
    for move, before in sorted(steps, key=lambda step: step[0].time):
        if move.mark[0] in ("return", "dropped"):
            found.add(_weights_of(place, before))
        elif not move.mark[0]:
            found.discard(_weights_of(place, move.version))
    return found


def _weights_of(place: str, version: str) -> str:
    return registry.read_version(place, version).files[checkpoint.MODEL_NAME]
