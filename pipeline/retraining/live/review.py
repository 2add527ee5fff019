"""Reviews models in use: a candidate is promoted or dropped, a champion goes back to the version before it.

A decision is written with all its numbers, then recorded as the one that counts (`store.decide_once`), then carried out
by a conditional write of the alias, then told. Each step can be repeated: the next review after a kill
carries out and tells what is left. The reason of each move ends with its kind and the ID of the review.

It can't flap. Only what a program promoted goes back by itself, so a champion that has come back by a return stays
until the next promotion; that takes labels or a person (`candidates.needs_labels`); and what was sent back or dropped
no program promotes again (`candidates.sent_back`).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.retraining import registry
from pipeline.retraining.alias_file import Move, read_alias
from pipeline.retraining.live import store
from pipeline.retraining.live.candidates import needs_labels, pending_candidate
from pipeline.retraining.live.evidence import Evidence
from pipeline.retraining.live.labels import LabelCounts
from pipeline.retraining.live.limits import LiveRule
from pipeline.retraining.live.rules import Pair, Verdict, judge_candidate, judge_champion
from pipeline.storage import files

_PROMOTIONS = ("night", "review")  # kinds of moves that a return undoes
_SUPERSEDED = f"{registry.CANDIDATE}-superseded"  # in `live/decided`: drops after a recorded promotion
_KINDS = ("review", "return", "dropped", "outdated")  # those of reviews


@dataclass(frozen=True)
class Finding:
    """What a review says of one version."""

    alias: str
    version: str
    verdict: Verdict
    """The rule's. It is carried out unless `held` says why not."""
    numbers: dict[str, Any]
    """The counts that it rests on, as JSON values."""
    held: str = ""
    """Why the champion doesn't go back by itself, whatever the rule says."""


@dataclass(frozen=True)
class Review:
    """The result of a review."""

    findings: tuple[Finding, ...] = ()
    decisions: tuple[dict[str, Any], ...] = ()
    """The content of each decision that was carried out, those that a killed review left included. Once only: one that
    the receiver refuses is told again by each later review, and is none of that review's."""
    labels: LabelCounts = field(default_factory=LabelCounts)
    """What was found in the files of labels."""
    unused: bool = False
    """Whether there was nothing to look at: no candidate, and no stored answers."""

    @property
    def returned(self) -> bool:
        """Whether the champion went back to the version before it."""
        return any(each["kind"] == "return" for each in self.decisions)

    @property
    def dropped(self) -> bool:
        """Whether a candidate was dropped."""
        return any(each["kind"] in ("dropped", "outdated") for each in self.decisions)


def review(place: str, rule: LiveRule | None = None, tell: Callable[[dict[str, Any]], bool] | None = None) -> Review:
    """Carries out what the rule says of champion and candidate, tells others, and returns the result.

    place: URI of the registry. tell: called with each decision (its kind, reason, numbers, `review`: the ID, and
    `move`) at least once; returns whether it is told, else the next review tells it again. Raises RegistryError if
    another process moved an alias meanwhile, or has begun a retraining run: nothing was changed then.
    """
    if not is_used(place):
        return Review(unused=True)
    rule = rule or LiveRule()
    evidence = Evidence(place, max(rule.window_images, rule.min_images))
    looks = (_look_at_champion, _look_at_candidate)
    findings = [each for look in looks if (each := look(evidence, rule))]
    labels = evidence.label_counts(sorted({each.version for each in findings}))
    return Review(tuple(findings), tuple(_tell(place, tell)), labels)


def is_used(place: str) -> bool:
    """Whether a registry has a candidate, or stored answers or labels."""
    return files.kind(files.join(place, "live")) != "missing" or registry.current(place, registry.CANDIDATE) is not None


def _look_at_champion(evidence: Evidence, rule: LiveRule) -> Finding | None:
    place = evidence.place
    state = read_alias(place, registry.CHAMPION)  # its fence, too: a night that begins from here on decides first
    champion = state.move
    if champion is None:
        return None
    before = registry.previous(place, champion)
    alone, certified = evidence.alone(champion.version), _certified(place, champion.version)
    pair = evidence.pair(before.version, champion.version) if before else Pair()
    verdict = judge_champion(alone, certified, pair, rule)
    numbers = {"alone": asdict(alone), "pair": asdict(pair), "certified": list(certified)}
    held = _why_held(champion, before)
    if held or before is None:
        return Finding(registry.CHAMPION, champion.version, verdict, numbers, held)
    known = store.decided(place, registry.CHAMPION, champion.number)
    if verdict.action == "return" or known:
        content = _content("return", verdict, numbers, rule, champion, None)
        content |= _inputs(evidence, [champion.version, before.version])
        identifier, content = _decide(place, registry.CHAMPION, champion.number, content)
        reason = f"back to {before.version}: {content['reason']} (return {identifier})"
        registry.roll_back_from(place, champion, reason, state.fence)
    return Finding(registry.CHAMPION, champion.version, verdict, numbers)


def _certified(place: str, version: str) -> tuple[int, int]:
    """Returns (correct, rows) of a version's certified evaluation."""
    found = registry.read_version(place, version)
    return round(found.top1 * found.rows), found.rows


def _why_held(champion: Move, before: Move | None) -> str:
    if champion.mark[0] == "return":
        return "it has come back by itself, and stays until a model is promoted"
    if champion.mark[0] not in _PROMOTIONS:
        return "a person made it live, and can take it back"
    return "" if before else "there is no version before it"


def _look_at_candidate(evidence: Evidence, rule: LiveRule) -> Finding | None:
    place = evidence.place
    state, candidate = read_alias(place, registry.CHAMPION), pending_candidate(place)
    if candidate is None or state.move is None:
        return None
    champion = state.move
    versions = [champion.version, candidate.version]
    pair = evidence.pair(*versions)
    alone, certified = evidence.alone(candidate.version), _certified(place, candidate.version)
    numbers = {"alone": asdict(alone), "pair": asdict(pair), "certified": list(certified)}
    if candidate.against != champion.number:
        was, now = candidate.against, champion.number
        verdict = Verdict(
            "drop", f"it was compared with the champion's move {was}, and the champion's move {now} is live"
        )
        content = _content("outdated", verdict, numbers, rule, champion, candidate) | _inputs(evidence, versions)
        _drop(place, candidate, champion, store.write_review(place, content), content)
        return Finding(registry.CANDIDATE, candidate.version, verdict, numbers)
    verdict = judge_candidate(alone, certified, pair, rule, needs_labels(place))
    if verdict.action != "wait" or store.decided(place, registry.CANDIDATE, candidate.number):
        kind = "review" if verdict.action == "promote" else "dropped"
        content = _content(kind, verdict, numbers, rule, champion, candidate) | _inputs(evidence, versions)
        identifier, content = _decide_candidate(place, candidate.number, content, verdict.action == "drop")
        if content["kind"] == "review":
            reason = f"candidate promoted: {content['reason']} (review {identifier})"
            registry.move(place, registry.CHAMPION, candidate.version, reason, champion, state.fence)
        else:
            _drop(place, candidate, champion, identifier, content)
    return Finding(registry.CANDIDATE, candidate.version, verdict, numbers)


def _drop(place: str, candidate: Move, champion: Move, identifier: str, content: dict[str, Any]) -> None:
    """Points the alias `candidate` at the champion: no candidate is left."""
    reason = f"dropped {candidate.version}: {content['reason']} ({content['kind']} {identifier})"
    registry.move(place, registry.CANDIDATE, champion.version, reason, candidate)


def _decide_candidate(place: str, number: int, content: dict[str, Any], is_drop: bool) -> tuple[str, dict[str, Any]]:
    """Returns the ID and the content of the decision that counts on a candidate, as `_decide`. is_drop: what the rule
    says now; the content is of no drop, whatever its kind, if a candidate would wait.

    A promotion that was recorded and not carried out (its review was killed, or a run began meanwhile) gives way to a
    drop by what is known now. That is recorded under a name of its own, so that it, too, is carried out after a kill.
    """
    known = store.decided(place, registry.CANDIDATE, number)
    is_promotion = known is not None and store.read_review(place, known)["kind"] == "review"
    if is_promotion and (is_drop or store.decided(place, _SUPERSEDED, number)):
        return _decide(place, _SUPERSEDED, number, content)
    return _decide(place, registry.CANDIDATE, number, content)


def _decide(place: str, alias: str, number: int, content: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns the ID and the content of the decision that counts on an alias's move `number`."""
    known = store.decided(place, alias, number)
    identifier = known or store.decide_once(place, alias, number, store.write_review(place, content))
    return identifier, store.read_review(place, identifier)


def _content(
    kind: str, verdict: Verdict, numbers: dict[str, Any], rule: LiveRule, champion: Move, candidate: Move | None
) -> dict[str, Any]:
    """Returns the content of a review, but for its inputs."""
    checks = [asdict(check) for check in verdict.checks]
    return {
        "kind": kind,
        "version": (candidate or champion).version,
        "reason": verdict.reason,
        "checks": checks,
        "numbers": numbers,
        "rule": asdict(rule),
        "champion": champion.as_json(),
        "candidate": candidate and candidate.as_json(),
    }


def _inputs(evidence: Evidence, versions: list[str]) -> dict[str, Any]:
    return {"inputs": evidence.inputs(versions), "labels": evidence.label_counts(versions).as_json()}


def _tell(place: str, tell: Callable[[dict[str, Any]], bool] | None) -> list[dict[str, Any]]:
    """Tells every decision that was carried out and isn't told yet, and returns those that no review has returned."""
    told, new = store.told_ids(place), list[dict[str, Any]]()
    for alias in (registry.CHAMPION, registry.CANDIDATE):
        for move in registry.history(place, alias):
            kind, identifier = move.mark
            if kind not in _KINDS or identifier in told:
                continue
            content = {**store.read_review(place, identifier), "review": identifier, "move": move.as_json()}
            refused = f"{identifier}{store.REFUSED}"
            store.write_told(place, identifier if tell is None or tell(content) else refused)
            if refused not in told:
                new.append(content)
    return new
