"""A folder belongs to the first who claims it."""

import threading
from pathlib import Path
from typing import Any

from pipeline.storage import files
from pipeline.storage.places import claim_folder


def test_the_first_claim_stays_and_every_later_one_gets_it(tmp_path: Path) -> None:
    place = str(tmp_path / "run" / "config.json")
    assert claim_folder(place, {"seed": 1, "crop": (32, 32)}) == {"seed": 1, "crop": [32, 32]}  # as JSON has it
    assert files.read_bytes(place) == b'{\n "seed": 1,\n "crop": [\n  32,\n  32\n ]\n}'
    assert claim_folder(place, {"seed": 2}) == {"seed": 1, "crop": [32, 32]}


def test_of_many_claims_at_a_time_one_is_written_and_all_get_that_one(tmp_path: Path) -> None:
    place, found = str(tmp_path / "run" / "plan.json"), list[dict[str, Any]]()
    threads = [
        threading.Thread(
            target=lambda n=number: found.append(claim_folder(place, {"number": n}, indent=None, end="\n"))
        )
        for number in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [found[0]] * 16
    assert files.read_bytes(place).endswith(b"}\n")
