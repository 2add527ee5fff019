"""A month of nights on the digits with what happens to an owner in years: one story, told by the files that it leaves.

The storage is a real S3 that goes away twice, runs are killed at random moments, and the source grows, is mislabelled,
drifts, gains, loses and renames classes.
"""

import io
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline import load_model
from pipeline.dataset.manifest import load
from pipeline.dataset.parquet import read_rows
from pipeline.retraining import registry
from pipeline.retraining.live.candidates import pending_candidate
from pipeline.retraining.registry_check import verify
from pipeline.storage import files
from tests.support.jobs import call_job, command
from tests.support.servers.fault_proxy import FaultProxy, fault_proxy
from tests.support.trained.live import put_traffic

pytestmark = [pytest.mark.ray, pytest.mark.long]

PROMOTED, USER_ERROR, KEPT, STOPPED, RETURNED = 0, 2, 3, 4, 5
NIGHTS, LIVE_A_DAY = 30, 80
FALL = 0.05  # by which the champion may be worse than the best one before it, at the end of a day


class Source:
    """The digits as an owner keeps them in a bucket: class folders below train and val."""

    def __init__(self, dataset: str, uri: str) -> None:
        self.uri, data = uri, load(dataset)
        parts = {}
        for name, split in data.splits.items():
            table = read_rows(dataset, split, np.arange(split.rows), ("label", "image"))
            parts[name] = list(zip(table["label"].to_pylist(), table["image"].to_pylist(), strict=True))
        random.Random(3).shuffle(parts["train"])
        self.live, self._train, self._val = parts["train"][:400], parts["train"][400:], parts["val"]
        self.names = [str(digit) for digit in range(10)]
        self.digits = list(range(9))  # that are there
        self.images = 250  # of train
        self.swapped: tuple[int, ...] = ()  # digits that the owner takes for each other
        self.wrong = range(0)  # training images that have a wrong label
        self.inverted = False  # whether the training images come from another camera

    def write(self) -> None:
        """Makes the bucket hold what is said above."""
        wanted = {}
        for split, rows in (("train", self._train[: self.images]), ("val", self._val)):
            for number, (digit, image) in enumerate(rows):
                if digit in self.digits:
                    is_odd = self.inverted and split == "train"
                    name = self.names[self._taken_for(digit, split, number)]
                    wanted[f"{split}/{name}/{number:05d}{'-i' * is_odd}.png"] = inverse(image) if is_odd else image
        there = {name for name, _ in files.list_files(self.uri)}
        files.delete_files(self.uri, sorted(there - wanted.keys()))
        for name in wanted.keys() - there:
            files.write_bytes(f"{self.uri}/{name}", wanted[name])

    def _taken_for(self, digit: int, split: str, number: int) -> int:
        if split == "train" and number in self.wrong:
            return (digit + 1) % 9
        return self.swapped[1 - self.swapped.index(digit)] if digit in self.swapped else digit


def inverse(image: bytes) -> bytes:
    out = io.BytesIO()
    ImageOps.invert(Image.open(io.BytesIO(image)).convert("RGB")).save(out, format="PNG")
    return out.getvalue()


class Month:
    """The nights and days of a workspace. Whatever they do is done by the commands that people have."""

    def __init__(self, source: Source, work: str, folder: Path) -> None:
        self.source, self.work, self.folder = source, work, folder
        self.place = f"{work}/registry"
        self.told: list[str] = []  # what the nights ended with
        self._accuracies: dict[str, float] = {}

    def line(self, *flags: str) -> list[str]:
        arguments = ["--source", self.source.uri, "--workspace", self.work, "--recipe", "digits", "--epochs", "8"]
        return [*arguments, "--workers", "0", "--min-images", "60", "--max-latency-ratio", "20", *flags]

    def night(self, *flags: str) -> int:
        """Runs a night to its end, and returns its status."""
        self.source.write()
        done = call_job("retrain", *self.line(*flags), cwd=self.folder)
        self.told.append(done.stdout + done.stderr)
        return done.returncode

    def broken_night(self, breaks: Callable[["subprocess.Popen[str]"], None], address: str) -> int:
        """Runs a night in a process of its own to which something happens, then the same command again."""
        self.source.write()
        process = subprocess.Popen(
            command("retrain", *self.line()), cwd=self.folder, env={**os.environ, "AWS_ENDPOINT_URL": address},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, text=True,
        )  # fmt: skip
        breaks(process)
        process.communicate(timeout=600)
        return self.night()

    def day(self, number: int) -> int:
        """Has the models answer images of which the labels are known in the evening; returns the review's status."""
        known = [(digit, image) for digit, image in self.source.live if digit in self.source.digits]
        rows = random.Random(number).sample(known, LIVE_A_DAY)
        champion = registry.current(self.place, registry.CHAMPION)
        assert champion is not None
        waiting, before = pending_candidate(self.place), registry.previous(self.place, champion)
        second = (waiting or before or champion).version
        answers = [self._answers(version, [image for _, image in rows]) for version in (champion.version, second)]
        shadow = second if second != champion.version else None
        put_traffic(self.place, (champion.version, shadow), answers[0], answers[1] if shadow else (), f"{number:02d}")
        labels = self.folder / f"day-{number}.csv"
        lines = [f"{number:02d}/{row},{self.source.names[digit]}" for row, (digit, _) in enumerate(rows)]
        labels.write_text("\n".join(["key,label", *lines]) + "\n")
        flags = ["--registry", self.place, "--labels", str(labels), "--min-images", "60", "--max-latency-ratio", "20"]
        done = call_job("registry", "review", *flags, cwd=self.folder)
        self.told.append(done.stdout + done.stderr)
        return done.returncode

    def _answers(self, version: str, images: list[bytes]) -> list[str]:
        model = load_model(registry.version_uri(self.place, version), "cpu")
        return list(model.predict([Image.open(io.BytesIO(image)).convert("RGB") for image in images]).names)

    def accuracy(self) -> float:
        """Returns the share of all live images that the champion classifies correctly, of the classes that it knows."""
        champion = registry.current(self.place, registry.CHAMPION)
        assert champion is not None
        if champion.version not in self._accuracies:
            known = load_model(registry.version_uri(self.place, champion.version), "cpu").classes
            digits = {name: 0 if name == "zero" else int(name) for name in known}
            rows = [(digit, image) for digit, image in self.source.live if digit in digits.values()]
            answers = self._answers(champion.version, [image for _, image in rows])
            right = [digit == digits[answer] for (digit, _), answer in zip(rows, answers, strict=True)]
            self._accuracies[champion.version] = float(np.mean(right))
        return self._accuracies[champion.version]


def kill(seconds: float) -> Callable[["subprocess.Popen[str]"], None]:
    def breaks(process: "subprocess.Popen[str]") -> None:
        time.sleep(seconds)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)

    return breaks


def storage_away(proxy: FaultProxy, after: float, seconds: float) -> Callable[["subprocess.Popen[str]"], None]:
    def breaks(process: "subprocess.Popen[str]") -> None:
        def away(value: bool) -> None:
            proxy.away = value

        threading.Timer(after, away, [True]).start()
        threading.Timer(after + seconds, away, [False]).start()

    return breaks


def test_a_month_of_nights(
    digits_dataset: str, s3: str, ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Source(digits_dataset, f"{s3}/month/source")
    month = Month(source, f"{s3}/month/work", tmp_path)
    mapping = tmp_path / "classes.csv"
    mapping.write_text("old,new\n0,zero\n")
    generator, best, statuses = random.Random(11), 0.0, dict[int, tuple[int, int]]()
    with fault_proxy(os.environ["AWS_ENDPOINT_URL"], every=0) as (address, proxy):
        for number in range(NIGHTS):
            source.images += 25 if number else 0
            status = one_night(month, number, generator, proxy, address, str(mapping))
            day = month.day(number)
            statuses[number] = status, day
            accuracy = month.accuracy()
            with capsys.disabled():
                print(f"night {number:2d}: status {status}, review {day}, champion {accuracy:.3f}", flush=True)
            assert accuracy >= best - FALL, (number, accuracy, best, month.told[-2:])
            best = max(best, accuracy)
    assert statuses[0][0] == PROMOTED
    assert statuses[12][0] == USER_ERROR
    assert "'3'" in month.told[24]
    assert statuses[16][0] == STOPPED
    assert RETURNED in (statuses[20][1], statuses[21][0], statuses[21][1])
    check_story(month)
    assert accuracy > 0.93


def one_night(
    month: Month, number: int, generator: random.Random, proxy: FaultProxy, address: str, mapping: str
) -> int:
    """Does what happens in a night, and returns its status."""
    source = month.source
    source.wrong, source.inverted, source.swapped = range(0), False, ()
    if number in (5, 26):
        return month.broken_night(storage_away(proxy, generator.uniform(5, 20), 10), address)
    if number in (4, 9, 18, 22, 27):
        return month.broken_night(kill(generator.uniform(4, 30)), address)
    if number == 7:
        source.digits = list(range(10))
    if number == 10:
        source.names[0] = "zero"
        return month.night("--classes", mapping)
    if number == 12:
        source.digits = [digit for digit in source.digits if digit != 3]
        status = month.night()
        source.digits = list(range(10))
        return status
    if number == 14:
        source.wrong = range(source.images - 300, source.images)
    if number == 16:
        source.inverted = True
        return month.night("--on-drift", "stop")
    if number == 20:
        source.swapped = (3, 5)
    return month.night(*(["--shadow"] if number >= 23 else []))


def check_story(month: Month) -> None:
    """History, registry and workspace tell what happened."""
    assert verify(month.place) == []
    moves = registry.history(month.place)
    reasons = [move.reason for move in moves]
    returns = [move for move in moves if move.mark[0] == "return"]
    assert len(returns) == 1, reasons
    bad = moves[returns[0].number - 2].version
    assert bad not in [move.version for move in moves[returns[0].number :]]
    assert any("new class '9'" in reason for reason in reasons), reasons
    assert any("'0' is now 'zero'" in reason for reason in reasons), reasons
    assert not files.exists(f"{month.work}/active.json")
    decisions: list[Any] = [
        files.read_json(f"{month.work}/nights/{name}/decision.json")
        for name in files.list_directories(f"{month.work}/nights")
    ]
    assert len(decisions) >= NIGHTS - 3
    promoted = [each for each in decisions if each["promote"]]
    assert len(promoted) == sum(move.mark[0] == "night" for move in moves) + len(
        [move for move in registry.history(month.place, registry.CANDIDATE) if move.mark[0] == "night"]
    )
