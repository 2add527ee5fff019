"""The jobs as a user calls them: exit statuses, errors in one line, and what they print.

Most calls happen in this process and share one Ray; processes of their own are started where signals, kills, or the
environment of a fresh process are what is tested.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.dataset.manifest import load
from pipeline.ingestion.sources import open_source
from pipeline.loader.sample_order import Order
from pipeline.models import checkpoint
from pipeline.models.tensor_file import read_tensors
from pipeline.storage import lease
from tests.support.jobs import SIX_EPOCHS, call_job, command, one_line_error, run_job
from tests.support.pictures.datasets import ingest_here
from tests.support.pictures.images import jpeg, make_tar, make_tree, tree_files
from tests.support.trained.runs import scalars, traced


@pytest.mark.parametrize(
    ("job", "arguments", "message"),
    [
        ("cifar10", ["--data", "nothere"], "nothere: no such file, folder or data set"),
        ("cifar10", ["--recipe", "cifar-10"], "recipe='cifar-10' is unknown; did you mean cifar10"),
        ("cifar10", ["--workers", "3", "--global-batch-size", "2"], "too small for 3 workers; use 3 or more"),
        ("cifar10", ["--optimizer", "adma"], "did you mean adam"),
        ("cifar10", ["--workers", "-1"], "workers=-1 must be 0"),
    ],
)
def test_a_user_error_is_one_line_and_nothing_is_written(
    tmp_path: Path, job: str, arguments: list[str], message: str
) -> None:
    assert message in one_line_error(call_job(job, *arguments, cwd=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_flag_is_an_error(tmp_path: Path) -> None:
    finished = call_job("cifar10", "--epoch", "3", cwd=tmp_path)
    assert finished.returncode == 2
    assert "--epochs" in finished.stderr


def test_a_bad_source_is_one_line_and_its_remedy_works(tmp_path: Path, ray_cluster: None) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no file" in one_line_error(call_job("ingest", "--source", "empty", "--out", "out", cwd=tmp_path))
    assert not (tmp_path / "out" / "manifest.json").exists()

    files = tree_files(make_tree(tmp_path / "tree"))
    make_tar(tmp_path / "a.tar", {**files, "train/bee/002.jpg": b"I am text"})
    message = one_line_error(
        call_job("ingest", "--source", "a.tar", "--out", "out", "--max-quarantined", "0", cwd=tmp_path)
    )
    assert "1 of 36 files can't be used (train/bee/002.jpg: no image: it begins with b'I am text')" in message
    assert "--max-quarantined 1" in message
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not list((tmp_path / "out").rglob("spool*"))

    # as the message says: the same command with that flag goes on from there and leaves it out
    left_out = call_job("ingest", "--source", "a.tar", "--out", "out", "--max-quarantined", "1", cwd=tmp_path)
    assert left_out.returncode == 0, left_out.stderr
    assert "2 of them there already" in left_out.stdout
    assert "1 (1 no image), see quarantine.parquet" in left_out.stdout
    assert load(str(tmp_path / "out")).digest in left_out.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "_state", "manifest.json", "provenance", "quality.html", "quarantine.parquet", "train", "val",
    ]  # fmt: skip
    again = one_line_error(call_job("ingest", "--source", "a.tar", "--out", "out", cwd=tmp_path))
    assert "holds a finished data set already" in again


def test_a_repaired_source_starts_over_and_another_source_is_refused(tmp_path: Path, ray_cluster: None) -> None:
    files = tree_files(make_tree(tmp_path / "tree"))
    make_tar(tmp_path / "a.tar", {**files, "train/bee/002.jpg": b""})
    strict = ("--max-quarantined", "0")
    one_line_error(call_job("ingest", "--source", "a.tar", "--out", "out", *strict, cwd=tmp_path))
    other = one_line_error(call_job("ingest", "--source", "tree", "--out", "out", cwd=tmp_path))
    assert "holds an unfinished ingest with another source" in other
    other = one_line_error(call_job("ingest", "--source", "a.tar", "--out", "out", "--seed", "1", cwd=tmp_path))
    assert "holds an unfinished ingest with another settings" in other
    make_tar(tmp_path / "a.tar", files)
    done = call_job("ingest", "--source", "a.tar", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    fresh = call_job("ingest", "--source", "tree", "--out", "fresh", cwd=tmp_path)
    assert fresh.returncode == 0, fresh.stderr
    assert load(str(tmp_path / "fresh")).digest == load(str(tmp_path / "out")).digest
    names = {name for name in tree_files(tmp_path / "fresh") if name.endswith(".parquet")}
    assert names == {name for name in tree_files(tmp_path / "out") if name.endswith(".parquet")}
    for name in names - {"_state/sources.parquet"}:  # where the source lay, and the times of its files
        assert (tmp_path / "fresh" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_a_version_holds_what_is_new(tmp_path: Path, ray_cluster: None) -> None:
    tree = make_tree(tmp_path / "tree")
    assert call_job("ingest", "--source", "tree", "--out", "v1", cwd=tmp_path).returncode == 0
    (tree / "train" / "ant" / "new.jpg").write_bytes(jpeg(4000))
    (tree / "val" / "bee" / "000.jpg").unlink()
    arguments = ("--source", "tree", "--out", "v2", "--onto", "v1")
    plan = call_job("ingest", *arguments, "--dry-run", cwd=tmp_path)
    assert "1 (1 train), 3 classes" in plan.stdout, plan.stderr
    done = call_job("ingest", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"train +19 rows\nval +17 rows\n", done.stdout)
    assert ", and 2 in 1 earlier data set" in done.stdout
    assert [str(path.relative_to(tmp_path / "v2")) for path in (tmp_path / "v2" / "train").iterdir()] == [
        "train/00000-of-00001.parquet"
    ]
    other = one_line_error(call_job("ingest", *arguments[:3], "v3", *arguments[4:], "--seed", "1", cwd=tmp_path))
    assert "seed=1, and the data set" in other
    recheck = one_line_error(call_job("ingest", "--source", "tree", "--out", "v3", "--recheck", cwd=tmp_path))
    assert "recheck reads the files of a source again, for a version; give it with onto" in recheck


def test_a_dry_run_shows_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    finished = call_job("ingest", "--source", "tree", "--out", "out", "--dry-run", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    for words in ("36 (18 train, 18 val), 3 classes", "2, of row groups of 512 rows", "0 GET, 0 PUT", "about "):
        assert words in finished.stdout
    assert not (tmp_path / "out").exists()


def test_verify_and_compare_name_damage_and_changes(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    ingest_here(open_source(str(tree), spool=""), str(tmp_path / "a"))
    (tree / "train" / "ant" / "000.jpg").unlink()
    ingest_here(open_source(str(tree), spool=""), str(tmp_path / "b"))
    changes = call_job("datasets.versions", "compare", "a", "b", cwd=tmp_path)
    assert changes.returncode == 0, changes.stderr
    assert "removed          1 row, first train/ant/000.jpg" in changes.stdout
    assert call_job("verify", "--data", "a", cwd=tmp_path).returncode == 0
    (shard,) = (tmp_path / "a" / "val").iterdir()
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    finished = call_job("verify", "--data", "a", cwd=tmp_path)
    assert "1 file or split is damaged" in one_line_error(finished)
    assert f"damaged: val/{shard.name}: SHA-256" in finished.stdout


def aged(tree: Path, seconds: int = 10**9) -> Path:
    """Gives new files the time of a past year: of those that were just written, an ingest doesn't record it."""
    for place in tree.rglob("*.jpg"):
        if place.stat().st_mtime > time.time() - 10**6:
            os.utime(place, (seconds, seconds))
    return tree


def kill_twice(folder: Path, out: str, *arguments: str) -> int:
    """Starts an ingest by four workers and kills it, twice. Returns the number of shards that are there then."""
    done = 0
    for _ in range(2):
        process = subprocess.Popen(
            command("ingest", *arguments, "--out", out, "--workers", "4"), cwd=folder, stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while len(list((folder / out).glob("_ingest/receipts/*/*.json"))) < done + 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.wait()
        done = len(list((folder / out).glob("_ingest/receipts/*/*.json")))
    assert not (folder / out / "manifest.json").exists()
    return done


@pytest.mark.long
def test_a_chain_of_versions_killed_twice_ends_with_the_bytes_of_a_quiet_one(tmp_path: Path, ray_cluster: None) -> None:
    """Three versions later: one worker, undisturbed; and four workers, the largest version killed twice by SIGKILL."""
    tree = aged(make_tree(tmp_path / "tree", per_class=20))
    jobs = {"quiet": ("--workers", "1"), "killed": ("--workers", "4")}
    for name, workers in jobs.items():
        ingested = call_job(
            "ingest", "--source", "tree", "--out", f"{name}/0", "--shard-mib", "0.05", *workers, cwd=tmp_path
        )
        assert ingested.returncode == 0, ingested.stderr
    for number in (1, 2, 3):
        if number == 1:
            place = tree / "train" / "bee" / "003.jpg"
            place.write_bytes(bytes(reversed(place.read_bytes())))  # as many bytes, and no image
            (tree / "val" / "cow" / "004.jpg").rename(tree / "val" / "ant" / "from-cow.jpg")
        elif number == 2:
            shutil.copytree(make_tree(tmp_path / "more", per_class=360), tree, dirs_exist_ok=True)
        else:
            for place in sorted(tree.glob("*/*/*0.jpg")):
                place.unlink()
        aged(tree, 10**9 + number)
        for name, workers in jobs.items():
            arguments = ["--source", "tree", "--onto", f"{name}/{number - 1}"]
            if (name, number) == ("killed", 2):
                assert kill_twice(tmp_path, "killed/2", *arguments) < 40
            done = call_job("ingest", *arguments, "--out", f"{name}/{number}", *workers, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
    quiet, killed = (tree_files(tmp_path / name) for name in jobs)
    assert quiet.keys() == killed.keys()
    assert {name for name in quiet if quiet[name] != killed[name]} == set()
    last = load(str(tmp_path / "killed" / "3"))
    assert last.digest == load(str(tmp_path / "quiet" / "3")).digest
    assert last.version is not None
    assert len(last.version.bases) == 3
    assert call_job("verify", "--data", "killed/3", cwd=tmp_path).returncode == 0


@pytest.mark.long
def test_an_ingest_killed_twice_ends_with_the_bytes_of_a_quiet_one(tmp_path: Path, ray_cluster: None) -> None:
    """One worker, undisturbed; four workers, killed twice with SIGKILL and started again: one digest, equal files."""
    aged(make_tree(tmp_path / "tree", per_class=150))
    arguments = ["--source", "tree", "--shard-mib", "0.015"]
    quiet = call_job("ingest", *arguments, "--out", "quiet", "--workers", "1", cwd=tmp_path)
    assert quiet.returncode == 0, quiet.stderr
    num_shards = len(list((tmp_path / "quiet" / "train").iterdir())) + len(list((tmp_path / "quiet" / "val").iterdir()))
    assert num_shards > 50
    done = kill_twice(tmp_path, "killed", *arguments)
    assert done < num_shards
    last = call_job("ingest", *arguments, "--out", "killed", "--workers", "4", cwd=tmp_path)
    assert last.returncode == 0, last.stderr
    trusted = int(re.search(r"(\d+) of them there already", last.stdout).group(1))
    assert done <= trusted < num_shards
    assert tree_files(tmp_path / "killed") == tree_files(tmp_path / "quiet")


def test_a_second_ingest_into_the_same_target_is_refused(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    target = str(tmp_path / "out")
    with lease.hold_lease(f"{target}/_ingest/lease.json", target, ttl_seconds=1):
        second = call_job("ingest", "--source", "tree", "--out", "out", cwd=tmp_path)
    assert "another process is writing there now" in one_line_error(second)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.slow
def test_of_two_ingest_processes_into_one_target_the_second_is_refused(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", per_class=300)
    first = subprocess.Popen(
        command("ingest", "--source", str(tree), "--out", "out", "--shard-mib", "0.01"), cwd=tmp_path,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    while not (tmp_path / "out" / "_ingest" / "lease.json").exists():
        assert first.poll() is None
        time.sleep(0.01)
    second = call_job("ingest", "--source", str(tree), "--out", "out", "--shard-mib", "0.01", cwd=tmp_path)
    assert "another process is writing there now" in one_line_error(second)
    assert first.wait(timeout=300) == 0
    assert (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.slow
def test_the_readmes_first_command_works_offline(tmp_path: Path) -> None:
    """It can't have CIFAR-10, so it trains on the digits and says so in every place that people look at."""
    finished = run_job("cifar10", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "CIFAR-10 can't be downloaded here" in finished.stdout
    assert "NOT CIFAR-10" in finished.stdout
    (run,) = (tmp_path / "runs").iterdir()
    assert "digits-not-cifar10" in run.name
    values = json.loads((run / "result.json").read_text())
    assert values["dataset"]["name"] == "digits-not-cifar10"
    assert values["val"]["top1"] >= 0.97
    shown = scalars(str(run / "tensorboard"), "val/top1")
    assert shown[-1] == (values["steps"], round(values["val"]["top1"], 6))
    assert len(shown) == len(values["evaluations"]) + 1
    assert "not CIFAR-10" in (run / "report.html").read_text()
    assert str(run / "report.html") in finished.stdout.replace("\n", "").replace(" ", "")


def weights(run: Path) -> str:
    model = read_tensors(str(run / "model.safetensors"))
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for _, tensor in sorted(model.items()))).hexdigest()


@pytest.mark.slow
def test_a_killed_run_continues_and_ends_with_the_same_weights(
    tmp_path: Path, digits_dataset: str, undisturbed: Path
) -> None:
    train = [*SIX_EPOCHS, "--data", digits_dataset]
    shutil.copytree(undisturbed, tmp_path / "quiet")

    process = subprocess.Popen(
        command("cifar10", *train, "--run-dir", "killed"), cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    # 12 steps an epoch, checkpoints at their ends: kill in the third epoch
    while not (checkpoint.latest(str(tmp_path / "killed")) or "").endswith("24"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.latest(str(tmp_path / "killed"))
    assert not (tmp_path / "killed" / "result.json").exists()

    again = run_job("cifar10", *train, "--run-dir", "killed", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    resumed = [path.name for path in (tmp_path / "killed" / "rows").iterdir()]
    assert any(name.startswith(("from-step-000000024", "from-step-000000036")) for name in resumed), resumed
    assert weights(tmp_path / "killed") == weights(tmp_path / "quiet")
    assert traced(tmp_path / "killed") == traced(tmp_path / "quiet")

    # each row once an epoch, in the order that anyone can recompute
    split = load(digits_dataset).split("train")
    order = Order(split.row_group_rows, 0, 128)
    steps = traced(tmp_path / "quiet")
    assert len(steps) == 6 * order.steps_per_epoch
    for epoch in range(6):
        keys = [key for step in range(12 * epoch, 12 * epoch + 12) for key in steps[step]]
        assert len(keys) == len(set(keys)) == split.rows

    values = json.loads((tmp_path / "quiet" / "result.json").read_text())
    for name in ("dataset", "recipe", "seed", "world_size", "epochs", "steps", "train_seconds", "images_per_second",
                 "data_wait_fraction", "val", "versions", "git_commit"):  # fmt: skip
        assert name in values
    assert values["val"]["rows"] == 359
    # the steps after a checkpoint give the recorded losses again, to the last bit; and it would be seen if they didn't
    replay = ["--checkpoint", "quiet", "--data", digits_dataset, "--steps", "5"]
    same = call_job("replay", *replay, cwd=tmp_path)
    assert same.returncode == 0, same.stderr
    assert "5 of 5" in same.stdout
    shutil.copytree(tmp_path / "quiet", tmp_path / "altered")
    output = json.loads((tmp_path / "altered" / "model.json").read_text())
    output["state"]["losses"] = [loss * (1 + 1e-12) for loss in output["state"]["losses"]]
    (tmp_path / "altered" / "model.json").write_text(json.dumps(output))
    different = call_job("replay", *replay, "--checkpoint", "altered", cwd=tmp_path)
    assert different.returncode == 1
    assert "DIFFERENT from step" in different.stdout

    # finished: said so, nothing trained, nothing changed; and another recipe is refused with the difference
    before = (tmp_path / "quiet" / "result.json").read_bytes()
    finished = call_job("cifar10", *train, "--run-dir", "quiet", cwd=tmp_path)
    assert "finished already" in finished.stdout
    other = call_job("cifar10", *train, "--run-dir", "quiet", "--seed", "1", cwd=tmp_path)
    assert "holds another run (seed was 0, now 1)" in one_line_error(other)
    assert (tmp_path / "quiet" / "result.json").read_bytes() == before


def test_the_error_of_a_diverging_run_names_the_remedy(
    tmp_path: Path, digits_dataset: str, ray_variables: None
) -> None:
    finished = call_job(
        "cifar10", "--data", digits_dataset, "--recipe", "digits", "--optimizer", "sgd", "--learning-rate", "1e30",
        "--epochs", "2", cwd=tmp_path,
    )  # fmt: skip
    message = one_line_error(finished)
    assert "nothing was updated" in message
    assert "last good checkpoint: none; lower learning_rate" in message


def test_ctrl_c_leaves_no_process_and_no_token_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = make_tree(tmp_path / "tree")
    for number in range(9000):
        (tree / "train" / "ant" / f"x{number}.jpg").write_bytes(jpeg(0))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    process = subprocess.Popen(
        command("ingest", "--source", "tree", "--out", "out"), cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    assert process.stdout is not None
    assert any(line.startswith("write") for line in process.stdout)
    assert list(Path("/tmp").glob(f"ray-{process.pid}-*"))
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert "interrupted; the same command continues" in process.stdout.read()
    left = subprocess.run(["pgrep", "-s", str(process.pid)], capture_output=True, text=True).stdout
    assert left == ""
    assert not list(Path("/tmp").glob(f"ray-{process.pid}-*"))
    assert not (tmp_path / ".ray").exists()


@pytest.mark.slow
def test_a_training_that_streams_is_ended_by_sigterm_and_leaves_no_process_behind(
    tmp_path: Path, tree_dataset: str
) -> None:
    arguments = ["--data", tree_dataset, "--recipe", "resnet18-smoke", "--workers", "1", "--storage", "runs"]
    process = subprocess.Popen(
        command("imagenet_resnet", *arguments, "--global-batch-size", "4", "--epochs", "50"), cwd=tmp_path,
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert any(line.startswith("train ") for line in process.stdout)
    assert list(Path("/tmp").glob(f"ray-{process.pid}-*"))
    process.terminate()
    assert process.wait(timeout=60) == 143
    deadline = time.monotonic() + 10  # for the system to collect what has ended
    while (left := subprocess.run(["pgrep", "-s", str(process.pid)], capture_output=True, text=True).stdout) != "":
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert not list(Path("/tmp").glob(f"ray-{process.pid}-*"))


@pytest.mark.slow
def test_a_local_ray_leaves_no_token_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    make_tree(tmp_path / "tree")
    finished = run_job("ingest", "--source", "tree", "--out", "out", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    assert not (tmp_path / ".ray").exists()


def test_versions_are_listed_compared_compacted_forgotten_and_dropped(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    ingest_here(open_source(str(tree), spool=str(tmp_path / "s")), str(tmp_path / "photos/v1"))
    (tree / "train" / "ant" / "new.jpg").write_bytes(jpeg(4000))
    (tree / "val" / "bee" / "000.jpg").unlink()
    assert (
        call_job("ingest", "--source", "tree", "--onto", "photos/v1", "--out", "photos/v2", cwd=tmp_path).returncode
        == 0
    )

    def said(*arguments: str) -> str:
        done = call_job("datasets.versions", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = said("list", "photos").splitlines()
    assert [line.split()[:5] for line in listed[1:3]] == [["v1", "36", "36", "0", "0"], ["v2", "36", "1", "1", "0"]]
    assert listed[3].startswith("2 versions in ")
    assert "added            1 row, first train/ant/new.jpg" in said("compare", "photos/v1", "photos/v2")
    assert 'CREATE OR REPLACE VIEW "train" AS' in said("sql", "photos/v2")
    assert re.search(
        r"photos/v3 stands alone\ntrain +19 rows\nval +17 rows\n", said("compact", "photos/v2", "--out", "photos/v3")
    )
    (tmp_path / "keys.txt").write_bytes(b"\xef\xbb\xbftrain/ant/001.jpg\r\n\r\ntrain/cow/002.jpg\r\n")
    gone = said("forget", "photos", "--key", "train/ant/new.jpg", "--keys", "keys.txt")
    assert "\nremoved: train/ant/001.jpg\nremoved: train/ant/new.jpg\nremoved: train/cow/002.jpg\n" in gone
    assert "3 images removed for good" in gone
    assert "nothing is left" in gone
    assert "1 file or split" not in said("list", "photos")
    assert "2 shards of dropped versions stay: v2 refers to them" in said("drop", "photos/v1")
    assert "photos/v2: dropped; " in said("drop", "photos/v2")
    assert [path.name for path in (tmp_path / "photos").glob("v*")] == ["v3"]
    assert call_job("verify", "--data", "photos/v3", cwd=tmp_path).returncode == 0
