"""A walk through what users get wrong: each command line ends with its status and one line with value and remedy.

Nearly all are called in this process; `-s` shows the seconds of each. What needs a process of its own is slow.
"""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import cli
from pipeline.storage import retries
from pipeline.storage.store_clients import forget_clients
from tests.support.jobs import ROOT
from tests.support.pictures.images import jpeg, make_tree
from tests.support.users import CAN_CHANGE_USER, as_user, let_others_in

TWO = "train --data data --recipe digits"
# (command line, words of the one line on standard error)
WALK = [
    # data
    ("train --data nothere", "nothere: no such file, folder or data set"),
    ("train --data dat", "did you mean "),
    ("train --data doc.pdf", "doc.pdf: neither a folder nor an archive"),
    ("train --data movie.mp4", "movie.mp4: neither a folder nor an archive"),
    ("train --data empty", "empty: holds no file; give a folder"),
    ("train --data zero.tar", "zero.tar: neither a folder nor an archive"),
    ("train --data broken", "manifest.json: not a manifest of this project"),
    ("train --data old", "manifest.json: not a manifest of this project"),
    ("train --data list", "manifest.json: not a manifest of this project"),
    ("train --data ftp://host/x", "unknown scheme 'ftp'; use a path, s3://"),
    ("train --data ~nosuchuser/x", "give an absolute path"),
    ("train --data s3://", "names no bucket; use s3://BUCKET/KEY"),
    ("train --data tree --layout nope", "layout 'nope' is unknown; use auto or one of"),
    ("train --data tree --val-share 3", "val_share=3 must lie above 0 and below 1"),
    # where the run lies
    (f"{TWO} --run-dir file.txt", "file.txt: is a file, not a folder; give another path"),
    (f"{TWO} --run-dir file.txt/x/y", "file.txt is a file, not a folder; give another path"),
    ("train --data data --recipe nope --run-dir file.txt/x", "file.txt is a file"),  # before what loads torch
    (f"{TWO} --run-dir /proc/x", "/proc can't be written"),
    (f"{TWO} --run-dir brokenrun", "config.json: damaged: not JSON"),
    # values
    ("train --data data --epochs two", "--epochs two: "),
    ("train --data data --epochs 0", "epochs=0 must be 1 or more"),
    ("train --data data --workers 99", "workers=99 are too many for the "),
    ("train --data data --workers -1", "workers=-1 must be 0 (this process) or more"),
    ("train --data data --device tpu", "--device tpu: "),
    ("train --data data --device gpu", "device=gpu: torch "),
    ("train --data data --recipe nope", "recipe='nope' is unknown"),
    ("train --data data --recipe bad.json", "bad.json: holds no recipe: not JSON"),
    ("train --data data --recipe gone.json", "gone.json: no such file"),
    ("train --data data --model resnet81", "did you mean resnet18"),
    ("train --data data --lr 3", "--lr: no such flag; did you mean --learning-rate?"),
    (f"{TWO} --set learning_rate=nan", "learning_rate=nan: must be a finite number"),
    (f"{TWO} --set nofield=3", "nofield: a recipe has no such field"),
    (f"{TWO} --pretrained gone.pt", "gone.pt"),
    (f"{TWO} --teacher nothere", "nothere: no such file"),
    (f"{TWO} --cache s3://b/x", "cache=s3://b/x must be a folder on a disk"),
    ("train --data data --recipe cifar10 --set model=vgg11_bn image_size_px=24", "24 px ("),
    ("train --data data --recipe cifar10 --model seed-cnn --set image_size_px=12", "use image_size_px=32"),
    # ingest and verify
    ("ingest", "--source is missing"),
    ("ingest --source nothere --out o", "nothere: no such file or directory"),
    ("ingest --source tree --out file.txt", "file.txt: is a file"),
    ("ingest --source tree --out file.txt/x", "file.txt is a file, not a folder"),
    ("ingest --source tree --out /proc/x", "/proc can't be written"),
    ("ingest --source tree --out data", "holds a finished data set already"),
    ("ingest --source tree --out tree", "holds other files"),
    ("ingest --source tree --out o --workers 0", "workers=0 must be 1 or more"),
    ("ingest --source tree --out o --shard-mib 0", "shard_mib=0 must lie above 0"),
    ("ingest --source tree --out o --jpeg-quality 300", "jpeg_quality=300 must be 0"),
    ("ingest --diff data nothere", "--diff: no such flag"),
    ("versions", "ACTION"),
    ("versions fly", "ACTION fly"),
    ("versions list", "list: 0 places given; give FOLDER, in which the versions lie"),
    ("versions list nothere", "nothere: no such folder; give the folder that the versions lie in"),
    ("versions list tree", "tree: no version lies in it"),
    ("versions compare data", "compare: 1 place given; give OLD NEW, two data sets"),
    ("versions compare data nothere", "nothere: no manifest.json, so no finished data set"),
    ("versions drop tree", "tree: no manifest.json, so no version"),
    ("versions compact data --out o", "data: refers to no other data set already"),
    ("versions compact data", "compact: --out is missing"),
    ("versions forget data", "forget: no image is named; give --key KEY, or --keys FILE"),
    ("versions forget data --keys tree", "keys=tree: is a folder; give a text file with a key on each line"),
    ("versions list data --out o", "list: --out is for `compact`; leave it out"),
    ("versions drop data --key a", "drop: --key is for `forget`; leave it out"),
    ("ingest --source tree --out o --dry-run --recheck", "give it with onto"),
    ("versions forget data --keys nothere", "keys=nothere: no such file"),
    ("versions sql tree", "tree: no manifest.json"),
    ("ingest --soruce tree", "--soruce: no such flag; did you mean --source?"),
    ("verify --data tree", "tree: no manifest.json, so no finished data set"),
    ("verify --data cut", "cut: 1 file or split is damaged; restore them"),
    ("verify --data file.txt", "file.txt: no manifest.json"),
    # trained models
    ("evaluate", "checkpoint: give a finished run"),
    ("evaluate --checkpoint nothere --data data", "checkpoint={}/nothere: no finished run (model.json); give the"),
    ("evaluate --checkpoint brokenrun --data data", "brokenrun/model.json: damaged (Object missing"),
    ("evaluate --verify nothere", "nothere: no metrics.json; give the folder of an evaluation"),
    ("evaluate --compare nothere empty", "nothere: no predictions.parquet; give the folder"),
    ("predict --checkpoint file.txt --input tree --out p", "file.txt: no finished run"),
    ("predict --checkpoint brokenrun --input tree --out p", "brokenrun/model.json: damaged (Object missing"),
    ("export --checkpoint nothere", "nothere: no finished run"),
    ("export --checkpoint brokenrun", "brokenrun/model.json: damaged (Object missing"),
    ("replay --checkpoint nothere --data data", "no such checkpoint; give a folder below RUN/checkpoints/"),
    ("replay --checkpoint nothere --data data --steps 0", "steps=0 must be 1 or more"),
    # a pipe is never waited for, and a device never read to its end
    ("train --data pipe.tar", "pipe.tar: neither a file nor a folder, but a pipe, socket or device"),
    ("train --data data --recipe pipe.yaml", "pipe.yaml: neither a file nor a folder"),
    (f"{TWO} --pretrained pipe.tar", "pipe.tar: neither a file nor a folder"),
    (f"{TWO} --run-dir pipe.tar", "pipe.tar: "),
    ("ingest --source /dev/zero --out o", "/dev/zero: neither a file nor a folder"),
    ("ingest --source tree --out pipe.tar", "pipe.tar: "),
    ("verify --data pipe.tar", "pipe.tar: no manifest.json"),
    ("predict --checkpoint pipe.tar --input tree --out p", "pipe.tar: no finished run"),
    ("registry list --registry pipe.tar", "pipe.tar: "),
    ("retrain --source pipe.tar --workspace w --recipe digits", "pipe.tar: neither a file nor a folder"),
    # registries, retraining, search
    ("registry list", "registry is missing; give --registry URI"),
    ("registry list --registry nothere", "nothere: no such folder; give the folder of one"),
    ("registry list --registry registr", "registr: no such folder; give the folder of one; did you mean {}/registry?"),
    ("registry list --registry data", "data: is no registry (it has no versions/)"),
    ("registry verify --registry file.txt", "file.txt: is a file; give the folder of a registry"),
    ("registry show x --registry registry", "version='x': no such version or alias"),
    ("registry promote x --registry registry", "promote needs a version and --reason"),
    ("registry rollback --registry registry", "there is nothing to go back to"),
    ("registry add --registry file.txt --checkpoint a --evaluation b", "file.txt: is a file, not a folder"),
    ("registry fly --registry registry", "ACTION fly"),
    ("retrain", "source"),
    ("retrain --source nothere --workspace w --recipe digits", "source={}/nothere: no such file or folder"),
    ("retrain --source tree --workspace file.txt --recipe digits", "workspace={}/file.txt: is a file"),
    ("retrain --source tree --workspace w --recipe digits --max-hours -1", "must be above 0"),
    ("tune --recipe digits --trials 0 --data data", "num_trials=0"),
    ("tune --recipe digits --trials 2 --data nothere", "nothere: no such file, folder or data set"),
    ("tune --recipe digits --trials 2 --data data --out file.txt", "out={}/file.txt: is a file"),
    ("tune --recipe digits --trials 2 --data data --space nofield=1..2", "space='nofield' is unknown"),
    ("frobnicate", "frobnicate: no such subcommand; choose from"),
    # storage: nothing listens at the endpoint
    ("verify --data s3://bucket/x", "s3://bucket/x/manifest.json: the storage can't be reached (connection refused)"),
    ("ingest --source s3://bucket/x --out o", "s3://bucket/x: the storage can't be reached (connection refused)"),
    ("ingest --source tree --out s3://bucket/x", "the storage can't be reached (connection refused)"),
    (f"{TWO} --run-dir s3://bucket/x", "the storage can't be reached (connection refused)"),
    ("verify --data 's3://Bad Bucket/x'", "'Bad Bucket' can be no bucket's name"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tree_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a data set, and with much that isn't one."""
    root = tmp_path_factory.mktemp("walk")
    make_tree(root / "tree")
    for name in ("data", "cut"):
        shutil.copytree(tree_dataset, root / name)
    shard = next((root / "cut" / "train").iterdir())
    shard.write_bytes(shard.read_bytes()[:100])
    (root / "file.txt").write_text("I am text\n" * 50)
    (root / "doc.pdf").write_bytes(b"%PDF-1.4\n" + bytes(500))
    (root / "movie.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(800))
    (root / "zero.tar").write_bytes(b"")
    (root / "one.jpg").write_bytes(jpeg(1))
    (root / "bad.json").write_text("{")
    os.mkfifo(root / "pipe.tar")
    os.mkfifo(root / "pipe.yaml")
    for name in ("empty", "registry"):
        (root / name).mkdir()
    manifests = {"broken": "{ not json", "old": json.dumps({"format": 99}), "list": "[1, 2]"}
    for name, text in manifests.items():
        (root / name).mkdir()
        (root / name / "manifest.json").write_text(text)
    (root / "brokenrun").mkdir()
    for name, text in {"model.json": "{}", "config.json": "nonsense", "result.json": "nonsense"}.items():
        (root / "brokenrun" / name).write_text(text)
    return root


@pytest.fixture
def here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, a cache elsewhere, no GPU, no cluster, and an object storage where nothing listens."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(retries, "FIRST_USE_SECONDS", 0.1)
    monkeypatch.setattr(retries, "_outages", retries._Outages())
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("pipeline.cluster.session.usable_cpus", lambda: 2)
    monkeypatch.setattr("pipeline.cluster.resources.ray_is_initialized", lambda: False)
    forget_clients()
    yield folder
    forget_clients()


@pytest.mark.parametrize(("line", "words"), WALK, ids=[line for line, _ in WALK])
def test_each_mistake_is_one_line_with_value_and_remedy(
    line: str, words: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in here.iterdir())
    start = time.perf_counter()
    try:
        status = cli.main(shlex.split(line))
    except SystemExit as end:  # flags that can't be parsed
        status = end.code if isinstance(end.code, int) else 1
    seconds = time.perf_counter() - start
    out, err = capsys.readouterr()
    assert status == 2, out + err
    assert err.count("\n") == 1, err
    assert err.startswith("error: ")
    assert words.format(here) in err
    assert "Traceback" not in out
    assert sorted(path.name for path in here.iterdir()) == before, "something was written"
    print(f"{seconds:.2f} s  {line}")


# --- in processes of their own -----------------------------------------------------------------------------------


def image_pipeline(line: str, cwd: Path, before: tuple[str, ...] = (), **variables: str | None) -> tuple[int, str, str]:
    """Returns status, standard output and standard error of `image-pipeline LINE`. A variable of None is taken away."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cwd / "cache"), **variables}
    done = subprocess.run(
        [*before, sys.executable, "-m", "jobs.cli", *shlex.split(line)],
        cwd=cwd, env={name: value for name, value in environment.items() if value is not None},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1:{}", "auto", "ray://127.0.0.1:{}", "no-such-host.invalid:6379"])
def test_a_cluster_that_is_not_there_is_one_line_within_seconds(address: str, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = address.format(listening.getsockname()[1])
    if address == "auto" and subprocess.run(["pgrep", "gcs_server"], capture_output=True).stdout:
        pytest.skip("a cluster runs here")
    start = time.monotonic()
    line = "train --data data --recipe digits --workers 1 --run-dir none"
    status, out, err = image_pipeline(line, folder, RAY_ADDRESS=address)
    assert status == 2, out + err
    assert err.startswith(f"error: RAY_ADDRESS={address}: ")
    assert err.count("\n") == 1, err
    print(f"{time.monotonic() - start:.1f} s for {address}")


@pytest.mark.long
@pytest.mark.skipif(not CAN_CHANGE_USER, reason="needs root and setpriv to become another user")
def test_a_user_id_without_an_account_ingests_and_trains(tmp_path: Path) -> None:
    """Without HOME, as a container gives it; ends with the data set and the run, and says where the cache is."""
    let_others_in(tmp_path)
    tmp_path.chmod(0o777)
    make_tree(tmp_path / "tree")
    nobody = as_user(54321)
    without: dict[str, str | None] = dict.fromkeys(("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME"))
    status, out, err = image_pipeline("ingest --source tree --out data", tmp_path, tuple(nobody), **without)
    assert (status, err) == (0, ""), out + err
    line = "train --data data --recipe digits --epochs 1 --workers 0 --run-dir run"
    status, out, err = image_pipeline(line, tmp_path, tuple(nobody), **without)
    assert (status, err) == (0, ""), out + err
    assert "cache: /tmp/image-pipeline-54321" in out
    assert (tmp_path / "run" / "result.json").exists()
    assert (tmp_path / "run").stat().st_uid == 54321


@pytest.mark.parametrize(
    ("number", "status"),
    [
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.long),
    ],
)
def test_a_closed_terminal_leaves_no_process_and_no_folder(
    number: signal.Signals, status: int, tmp_path: Path, tree_dataset: str
) -> None:
    """The signal goes to the whole group, as a terminal's does, while Ray starts or works."""
    line = f"train --data {tree_dataset} --recipe digits --epochs 500 --workers 1 --run-dir run"
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", *shlex.split(line)], cwd=tmp_path, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests may run under nohup
    )  # fmt: skip
    deadline = time.monotonic() + 100
    while not list(Path("/tmp").glob(f"ray-{process.pid}-*/session_latest")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(3)
    os.killpg(process.pid, number)
    out, _ = process.communicate(timeout=100)
    assert process.returncode == status, out
    assert "Traceback" not in out
    deadline = time.monotonic() + 10
    while (left := subprocess.run(["pgrep", "-s", str(process.pid)], capture_output=True, text=True).stdout) != "":
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert not list(Path("/tmp").glob(f"ray-{process.pid}-*"))
