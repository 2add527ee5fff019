"""The registry, in a folder and in a real bucket: versions are immutable, and of concurrent moves one succeeds."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.core.errors import RegistryError, StorageError
from pipeline.dataset import manifest
from pipeline.evaluation.certificate import certify
from pipeline.evaluation.metrics_file import build_metrics
from pipeline.evaluation.runner import EvaluateJob, run_evaluation
from pipeline.models.load import find_model, load_net
from pipeline.retraining import registry
from pipeline.retraining.alias_file import read_alias, write_alias
from pipeline.retraining.mlflow_mirror import mirror
from pipeline.retraining.registry_check import verify
from pipeline.storage import files
from tests.support.jobs import call_job, one_line_error


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty registry."""
    if request.param == "folder":
        yield str(tmp_path / "registry")
        return
    s3 = request.getfixturevalue("s3")
    uri = f"{s3}/registry-{tmp_path.name}"
    yield uri
    files.delete_tree(uri)


@pytest.fixture(scope="module")
def evaluation(trained: str, digits_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A certified evaluation of the trained run."""
    out = str(tmp_path_factory.mktemp("evaluation"))
    job, data, model = EvaluateJob(trained, digits_dataset, out), manifest.load(digits_dataset), find_model(trained)
    run_evaluation(job)
    certificate, predictions = certify(job, data, model)
    values = build_metrics(job, data, model, certificate, predictions)
    Path(out, "metrics.json").write_text(json.dumps(values))
    return out


def three(place: str, trained: str, evaluation: str) -> list[str]:
    """IDs of three versions, each the child of the one before."""
    ids = [""]
    for _ in range(3):
        ids.append(registry.add(place, trained, evaluation, ids[-1]).id)
    return ids[1:]


def test_a_version_is_added_once_and_is_a_model(place: str, trained: str, evaluation: str) -> None:
    first, again = (registry.add(place, trained, evaluation) for _ in range(2))
    assert first == again
    assert [each.id for each in registry.versions(place)] == [first.id]
    model = find_model(registry.version_uri(place, first.id))
    assert model.sha256 == find_model(trained).sha256
    load_net(model)
    assert registry.get(place, first.id[:5]) == first
    assert verify(place) == []
    child = registry.add(place, trained, evaluation, parent=first.id)
    assert child.id != first.id
    assert registry.versions(place) == [first, child]


def test_an_interrupted_upload_is_no_version_and_is_completed(
    place: str, trained: str, evaluation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = files.write_bytes

    def cut(uri: str, data: bytes) -> None:
        if uri.endswith("metrics.json"):
            raise StorageError("the storage went away")
        written(uri, data)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_bytes", cut)
        with pytest.raises(StorageError):
            registry.add(place, trained, evaluation)
    assert registry.versions(place) == []
    assert verify(place) == []
    assert registry.versions(place) == [] != [registry.add(place, trained, evaluation)]
    assert verify(place) == []


def test_an_alias_moves_and_rolls_back_to_its_first_version(place: str, trained: str, evaluation: str) -> None:
    a, b, c = three(place, trained, evaluation)
    for version in (a, b, a, c):
        registry.move(place, "champion", version, f"to {version}", registry.current(place, "champion"))
    seen = []
    for _ in range(3):
        seen.append(registry.rollback(place).version)
    assert seen == [a, b, a]
    with pytest.raises(RegistryError, match="nothing to go back to"):
        registry.rollback(place)
    moves = registry.history(place)
    assert [each.version for each in moves] == [a, b, a, c, a, b, a]
    assert [each.number for each in moves] == [1, 2, 3, 4, 5, 6, 7]
    assert registry.aliases(place) == {"champion": a}
    assert registry.get(place, "champion").id == a
    assert verify(place) == []
    now = registry.current(place, "champion")
    assert registry.move(place, "champion", a, "again", now) == now  # it is there already


@pytest.mark.parametrize("first_time", [True, False])
def test_of_concurrent_promotions_exactly_one_succeeds_and_the_others_raise(
    place: str, trained: str, evaluation: str, first_time: bool
) -> None:
    a, b, c = three(place, trained, evaluation)
    before = None if first_time else registry.move(place, "champion", a, "first", None)
    errors: list[str] = []
    won: list[registry.Move] = []
    start = threading.Barrier(6)

    def promote(number: int) -> None:
        start.wait()
        try:
            won.append(registry.move(place, "champion", (b, c)[number % 2], f"by {number}", before))
        except RegistryError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=promote, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(errors) == 5
    assert all("another process has moved it meanwhile" in message for message in errors)
    assert registry.current(place, "champion") == won[0] == registry.history(place)[-1]
    assert verify(place) == []


def test_a_process_with_an_old_fencing_token_moves_nothing(place: str, trained: str, evaluation: str) -> None:
    """Also if the other process moved nothing: only the fencing token tells."""
    a, b, c = three(place, trained, evaluation)
    slept = registry.take_fence(place, "champion")
    assert registry.current(place, "champion") is None
    assert registry.aliases(place) == {}
    awake = registry.take_fence(place, "champion")
    with pytest.raises(RegistryError, match=r"took a later fencing token.*nothing was changed"):
        registry.move(place, "champion", a, "too late", None, slept)
    assert registry.current(place, "champion") is None
    first = registry.move(place, "champion", b, "in time", None, awake)
    with pytest.raises(RegistryError, match="another process has moved it meanwhile"):
        registry.move(place, "champion", a, "still too late", None, slept)
    assert registry.move(place, "champion", c, "again in time", first, awake).number == 2
    assert registry.rollback(place).version == b  # by hand, without a fence
    assert registry.take_fence(place, "champion") == awake + 1
    assert verify(place) == []


def test_a_killed_mover_leaves_no_gap_in_the_history(place: str, trained: str, evaluation: str) -> None:
    a, b, c = three(place, trained, evaluation)
    first = registry.move(place, "champion", a, "first", None)
    killed = registry.Move("champion", 2, b, 1, "killed before the history was written", 0.0)
    state = read_alias(place, "champion")
    assert write_alias(place, "champion", replace(state, move=killed))
    assert registry.history(place) == [first, killed]
    assert verify(place) == []
    registry.move(place, "champion", c, "next", killed)
    assert [each.version for each in registry.history(place)] == [a, b, c]
    assert registry.rollback(place).version == b
    assert verify(place) == []


def test_damage_is_named(place: str, trained: str, evaluation: str) -> None:
    a, b, _ = three(place, trained, evaluation)
    first = registry.move(place, "champion", a, "first", None)
    registry.move(place, "champion", b, "second", first)
    folder = registry.version_uri(place, a)
    files.write_bytes(files.join(folder, "model.safetensors"), b"other weights")
    files.delete_files(registry.version_uri(place, b), ["metrics.json"])
    files.delete_files(files.join(place, "history", "champion"), ["000001.json"])
    problems = "; ".join(verify(place))
    changed, missing = f"version {a}: model.safetensors has changed", f"version {b}: metrics.json is missing"
    for words in (changed, missing, "has gaps: [2]"):
        assert words in problems


def test_an_evaluation_of_another_model_is_refused(place: str, trained: str, evaluation: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in Path(evaluation).iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    values = json.loads((other / "metrics.json").read_text())
    values["certificate"]["checkpoint_sha256"] = "0" * 64
    (other / "metrics.json").write_text(json.dumps(values))
    with pytest.raises(RegistryError, match="its certificate is of other weights"):
        registry.add(place, trained, str(other))
    with pytest.raises(RegistryError, match="no such version or alias"):
        registry.add(place, trained, evaluation, parent="nothere")
    with pytest.raises(RegistryError, match="give a finished run"):
        registry.add(place, str(tmp_path), evaluation)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "made by: jobs/evaluate.py --checkpoint RUN --data DATA --out OUT"),
        (["--checkpoint", "my runs/a"], "made by: jobs/evaluate.py --checkpoint 'my runs/a' --data DATA --out OUT"),
        (["--checkpoint", "a", "--evaluation", "a/e"], "a/model.safetensors: no such file; give a finished run"),
    ],
)
def test_add_names_the_command_that_makes_the_evaluation(arguments: list[str], message: str, tmp_path: Path) -> None:
    given = ["registry", "add", *arguments, "--registry", "models"]
    assert message in one_line_error(call_job(*given, cwd=tmp_path))
    assert not (tmp_path / "models").exists()


def test_an_evaluation_that_is_not_there_is_named_with_its_command(place: str, trained: str, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=f"no such file; .* jobs/evaluate.py .* --out {tmp_path}/none"):
        registry.add(place, trained, f"{tmp_path}/none")


def test_the_job_adds_promotes_shows_and_rolls_back(trained: str, evaluation: str, tmp_path: Path) -> None:
    def job(*arguments: str) -> str:
        finished = call_job("registry", *arguments, "--registry", "models", cwd=tmp_path)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    added = job("add", "--checkpoint", trained, "--evaluation", evaluation)
    version = added.split()[1].rstrip(":")
    assert "champion is" in job("promote", version[:6], "--reason", "the first")
    assert "the first" in job("show")
    error = call_job("registry", "rollback", "--registry", "models", cwd=tmp_path)
    assert "nothing to go back to" in one_line_error(error)


def test_an_mlflow_registry_follows(
    trained: str, evaluation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a server, without one
    from mlflow import MlflowClient

    place, uri = str(tmp_path / "registry"), f"file://{tmp_path}/mlflow"
    a, b, _ = three(place, trained, evaluation)
    first = registry.move(place, "champion", a, "first", None)
    assert mirror(place, uri) == 3
    registry.move(place, "champion", b, "second", first)
    assert mirror(place, uri) == 0
    client = MlflowClient(uri)
    shown = {
        each.tags["image_pipeline.version"]: each for each in client.search_model_versions("name='image-pipeline'")
    }
    assert set(shown) == {each.id for each in registry.versions(place)}
    assert client.get_model_version_by_alias("image-pipeline", "champion").source == registry.version_uri(place, b)
    assert float(shown[a].tags["top1"]) == registry.get(place, a).top1
    finished = call_job("registry", "rollback", "--registry", place, "--mlflow", uri, cwd=tmp_path)
    assert "0 versions added, aliases as here" in finished.stdout, finished.stderr
    assert client.get_model_version_by_alias("image-pipeline", "champion").version == shown[a].version
