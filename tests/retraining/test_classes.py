"""Classes that change: mapping files, spelling, and the names that stop a run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import DatasetError, PipelineError, RecipeError, UnavailableError
from pipeline.dataset.manifest import Manifest, Split
from pipeline.retraining.classes import ClassRules, as_json, change_text, compare_classes, read_class_file
from pipeline.retraining.decision.promotion_gate import Gate
from pipeline.retraining.workspace import resume_or_start
from pipeline.storage import files
from tests.support.trained.retraining import planned_run


def data_of(*classes: str, rows: tuple[int, ...] = (), val: tuple[int, ...] = ()) -> Manifest:
    counts = {"train": rows or (5,) * len(classes), "val": val or (2,) * len(classes)}
    return Manifest("photos", classes, 0, {name: Split(sum(each), each, ()) for name, each in counts.items()})


def compared(known: str, now: str, rules: ClassRules | None = None) -> dict[str, object]:
    """known, now: names of one letter or of several between spaces."""
    rules = rules or ClassRules()
    found = compare_classes(tuple(known.split()), data_of(*now.split()), rules, rules)
    return {name: value for name, value in (as_json(found, rules) or {}).items() if value and name != "text"}


RENAMED = ClassRules({"bee": "wasp"})
CASES = [
    ("ant bee", "ant bee", ClassRules(), {}),
    ("ant bee", "ant bee owl", ClassRules(), {"added": ["owl"]}),
    ("bee ant", "ant bee", ClassRules(), {}),  # another order is no change
    ("ant bee", "ant wasp", RENAMED, {"renamed": {"bee": "wasp"}}),
    ("ant bee", "ant Bee", ClassRules(), {"renamed": {"bee": "Bee"}}),
    ("ant honey_bee", "ant Honey-Bee", ClassRules(), {"renamed": {"honey_bee": "Honey-Bee"}}),
    ("ant bee wasp", "ant wasp", RENAMED, {"merged": {"wasp": ["bee", "wasp"]}}),
    ("ant bee cow", "x", ClassRules({"ant": "x", "bee": "x", "cow": "x"}), {"merged": {"x": ["ant", "bee", "cow"]}}),
    ("ant bee", "ant fly", ClassRules({"bee": "wasp", "wasp": "fly"}), {"renamed": {"bee": "fly"}}),
    ("ant bee", "ant", ClassRules(removed=("bee",)), {"removed": ["bee"]}),
    ("ant bee", "ant owl", ClassRules(removed=("bee",)), {"added": ["owl"], "removed": ["bee"]}),
    ("ant wasp", "ant wasp", RENAMED, {}),  # the champion has the new name: the file may stay in the schedule
    ("ant bee", "ant Bee", ClassRules(removed=("bee",)), {"added": ["Bee"], "removed": ["bee"]}),
]


@pytest.mark.parametrize(("known", "now", "rules", "expected"), CASES)
def test_classes_are_matched_by_name_by_the_mapping_and_by_spelling(
    known: str, now: str, rules: ClassRules, expected: dict[str, object]
) -> None:
    found = compared(known, now, rules)
    found.pop("rules", None)
    assert found == expected


STOPS = [
    ("ant bee", "ant", ClassRules(), "1 class of the champion is missing in photos: 'bee'; bring the images back, or "
     "give --allow-removed bee if that is meant, or --classes FILE with the line old,new and one for each"),
    ("ant bee", "ant owl", ClassRules(), "missing in photos, which has the new 'owl': 'bee'"),
    ("ant bee cow", "owl", ClassRules(removed=("ant",)), "2 classes of the champion are missing"),
    ("ant b_c B-C", "ant b-c", ClassRules(), "'b_c', 'B-C'"),  # two names that are spelt like the new one
    ("ant bee", "ant bee", RENAMED, "'bee' is to be called 'wasp' and is still a class of the source"),
    ("ant bee", "ant wasps", RENAMED, "'wasp', which is no class of the source; did you mean 'wasps'?"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("b ee", "--allow-removed 'b ee' if that is meant"),
        ("$(rm x)`y`", "--allow-removed '$(rm x)`y`' if"),
        ('b"e', "--allow-removed 'b\"e' if"),
        ("b'e", "--allow-removed 'b'\"'\"'e' if"),
        (
            "-bee",
            "or give --classes FILE with the line old,new and one for each that has another name, and nothing after",
        ),
        ("b\nee", "or give --classes FILE with"),
    ],
)
def test_the_command_in_the_message_can_be_pasted(name: str, text: str) -> None:
    with pytest.raises(DatasetError) as raised:
        compare_classes(("ant", name), data_of("ant"), ClassRules(), ClassRules())
    assert text in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("known", "now", "rules", "message"), STOPS)
def test_a_class_that_vanished_stops_the_run(known: str, now: str, rules: ClassRules, message: str) -> None:
    with pytest.raises(DatasetError) as raised:
        compared(known, now, rules)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_class_whose_last_training_image_is_gone_stops_the_run() -> None:
    before, now = data_of("ant", "bee", rows=(3, 2)), data_of("ant", "bee", rows=(5, 0))
    rules = ClassRules()
    with pytest.raises(DatasetError, match="no training image is left of 'bee'"):
        compare_classes(("ant", "bee"), now, rules, rules, before)
    compare_classes(("ant", "bee"), now, rules, rules, now)  # there was none before, either


def test_a_class_whose_last_validation_image_is_gone_stops_the_run() -> None:
    before, now = data_of("ant", "bee"), data_of("ant", "wasp", val=(3, 0))
    with pytest.raises(DatasetError, match="no validation image is left of 'wasp'"):
        compare_classes(("ant", "bee"), now, RENAMED, RENAMED, before)
    compare_classes(("ant", "wasp"), now, RENAMED, RENAMED, now)


def test_what_was_said_is_remembered_until_the_name_is_back() -> None:
    given = ClassRules({"bee": "wasp"}, ("cow",))
    known, now = ("ant", "bee", "cow"), data_of("ant", "wasp")
    recorded = json.loads(json.dumps(as_json(compare_classes(known, now, given, given), given)))
    later = ClassRules().remembering(recorded)
    assert later == given
    found = compare_classes(known, now, ClassRules(), later)  # as after a rollback
    assert change_text(found) == "removed 'cow'; 'bee' is now 'wasp'"
    back = compare_classes(known, data_of("ant", "cow", "wasp"), ClassRules(), later)
    after = ClassRules().remembering(as_json(back, later))
    assert after == ClassRules({"bee": "wasp"})
    with pytest.raises(DatasetError, match="'cow'"):
        compare_classes(known, now, ClassRules(), after)
    assert ClassRules({"cow": "ox"}).remembering(recorded) == ClassRules({"bee": "wasp", "cow": "ox"})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"old,new\nbee,wasp\n\ncow,\nant,ant\n"),
        ("a.csv", "\ufeffNew;OLD\r\nwasp;bee\r\n;cow\r\n".encode()),
        ("a.csv", "old\tnew\nbee\twasp\ncow\n".encode("utf-16")),
        ("a.json", b'{"bee": "wasp", "cow": null}'),
    ],
)
def test_a_mapping_file_is_a_csv_or_json(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert read_class_file(str(tmp_path / name)) == ({"bee": "wasp"}, ["cow"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"bee,wasp\n", "no column 'old' in the first line"),
        ("a.csv", b"old,new\nbee,wasp\nbee,fly\n", "line 3 says again what becomes of 'bee'"),
        ("a.csv", b"old,new\n,fly\n", "line 2 has no old name"),
        ("a.csv", b"old,new\nbee,\xff\n", "line 2 isn't UTF-8"),
        ("a.json", b'["bee"]', 'must be {"OLD": "NEW", "REMOVED": null}'),
        ("a.json", b"{", "not JSON"),
        ("b.csv", b"", "no such file"),
    ],
)
def test_a_bad_mapping_file_is_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    if content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PipelineError) as raised:
        read_class_file(str(tmp_path / name))
    assert message in str(raised.value)


@pytest.mark.parametrize("changes", [{"new_class_recall": 1.0}, {"shared_drop": -0.1}])
def test_limits_out_of_range_raise(changes: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match="must lie in"):
        ClassRules(**changes)


def test_rules_are_part_of_a_runs_identity_and_none_changes_nothing(tmp_path: Path) -> None:
    run = planned_run(str(tmp_path), recipe={"name": "digits"}, gate=Gate(false_promotions_per_year=None))
    assert run.id == "16a8867e3178"  # as before this field
    assert "classes" not in run.as_json()
    told = replace(run, classes=ClassRules({"bee": "wasp"}, ("cow",)))
    assert told.id != run.id
    assert resume_or_start(told) == told
    assert resume_or_start(told).id == told.id  # read back
    assert resume_or_start(run) == run


def test_a_mapping_that_the_storage_does_not_give_is_no_fault_of_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.json").write_text('{"bee": "wasp"}')

    def away(uri: str) -> Any:
        raise UnavailableError(f"{uri}: no answer")

    monkeypatch.setattr(files, "read_json", away)
    with pytest.raises(UnavailableError):
        read_class_file(str(tmp_path / "a.json"))
