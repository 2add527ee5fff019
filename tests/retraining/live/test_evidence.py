"""What two models answered, whose classes a night has renamed and merged."""

from pathlib import Path

from pipeline.retraining import registry
from pipeline.retraining.live.evidence import Evidence
from pipeline.retraining.workspace import renames_of
from pipeline.storage import files
from tests.support.trained.live import make_version, put_labels, put_traffic


def test_a_class_that_was_renamed_or_merged_is_no_disagreement(tmp_path: Path) -> None:
    place = f"{tmp_path}/registry"
    old = make_version(place, "one", classes=("cat", "dog", "owl"))
    new = make_version(place, "two", classes=("owl", "pet", "uhu"))
    registry.move(place, "challenger", new, "trained in night abc", None)
    pairs = (old, new)
    put_traffic(place, pairs, ["cat", "dog", "owl", "cat"], ["pet", "pet", "owl", "owl"])
    assert Evidence(place).pair(*pairs).disagreements == 3
    classes = {"renamed": {}, "merged": {"pet": ["cat", "dog"]}}
    files.write_json(f"{tmp_path}/nights/abc/decision.json", {"night": "abc", "classes": classes})
    assert renames_of(place, new) == {"cat": "pet", "dog": "pet"}
    assert renames_of(place, old) == {}
    put_labels(place, {"day/0": "pet", "day/1": "cat", "day/2": "owl", "day/3": "dog"})
    for one, other, rights in ((old, new, (4, 3)), (new, old, (3, 4))):
        found = Evidence(place).pair(one, other)
        assert (found.disagreements, found.labelled, found.correct) == (1, 4, rights)
