"""One writer at a time: on a disk here, on a real S3 below."""

import json
import multiprocessing
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from pipeline.core.errors import DatasetError
from pipeline.storage import files, lease


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.ray)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "x" / "lease.json")
    return f"{request.getfixturevalue('s3')}/leases/{tmp_path.name}/lease.json"


def test_a_lease_is_there_while_it_is_held_and_gone_after(place: str) -> None:
    with lease.hold_lease(place, "out") as held:
        assert files.read_json(place)["pid"] == os.getpid()
        held.check()
    assert not files.exists(place)
    with lease.hold_lease(place, "out"):
        pass


def test_a_second_writer_is_refused_while_the_first_lives(place: str) -> None:
    with (
        lease.hold_lease(place, "the-target", ttl_seconds=3.0),
        pytest.raises(DatasetError, match=r"the-target: another process is writing there now \(process \d+ on "),
        lease.hold_lease(place, "the-target", ttl_seconds=3.0),
    ):
        pass


def test_of_many_at_once_one_gets_it(place: str) -> None:
    inside, most = 0, 0
    outcomes: list[bool] = []
    lock = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        try:
            with lease.hold_lease(place, "x", ttl_seconds=2.0):
                with lock:
                    inside += 1
                    most = max(most, inside)
                deadline = time.monotonic() + 20  # until all the others have been told
                while len(outcomes) < 5 and time.monotonic() < deadline:
                    time.sleep(0.1)
                with lock:
                    inside -= 1
            outcomes.append(True)
        except DatasetError:
            outcomes.append(False)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert outcomes.count(True) == 1


def leave_behind(place: str, **changes: object) -> None:
    content = {
        "owner": "x",
        "what": "t",
        "host": socket.gethostname(),
        "boot": lease._boot(),
        "pid": 0,
        "ttl_seconds": 30.0,
    }
    files.write_json(place, {**content, **changes, "beat": 0})


def ended_process() -> int:
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    process.join()
    assert process.pid
    return process.pid


def test_a_holder_of_this_machine_whose_process_has_ended_is_not_waited_for(place: str) -> None:
    leave_behind(place, pid=ended_process())
    start = time.monotonic()
    with lease.hold_lease(place, "t"):
        assert time.monotonic() - start < 2


@pytest.mark.parametrize("changes", [{"host": "elsewhere"}, {"boot": "before"}])
def test_a_silent_holder_of_another_machine_is_waited_for_and_replaced(place: str, changes: dict[str, str]) -> None:
    leave_behind(place, pid=ended_process(), ttl_seconds=1.0, **changes)
    start, remarks = time.monotonic(), []
    with lease.hold_lease(place, "t", lambda *stage: remarks.append(stage[0])) as held:
        assert 0.9 < time.monotonic() - start < 5
        held.check()
    assert "lease" in remarks


def test_a_holder_that_was_away_for_too_long_is_told(place: str) -> None:
    with lease.hold_lease(place, "t", ttl_seconds=0.6) as held:
        found = files.read_version(place)
        assert found is not None
        taken = json.dumps({**json.loads(found[0]), "owner": "another"}).encode()
        while (found := files.read_version(place)) and files.replace(place, taken, found[1]) is None:
            pass
        time.sleep(0.5)
        with pytest.raises(DatasetError, match="another has taken over"):
            held.check()
    assert files.read_json(place)["owner"] == "another"  # it isn't ours to remove


def test_of_many_replacements_one_wins(place: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    assert files.write_once(place, b"start")
    found = files.read_version(place)
    assert found is not None
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda writer: files.replace(place, bytes([writer]) * 9, found[1]), range(8)))
    winners = [writer for writer, version in enumerate(won) if version is not None]
    assert len(winners) == 1
    assert files.read_version(place) == (bytes(winners) * 9, won[winners[0]])
    assert files.replace(place, b"late", found[1]) is None
    assert files.replace(f"{place}x", b"nothing there", found[1]) is None
