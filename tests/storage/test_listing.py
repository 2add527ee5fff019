"""Listings of many files: in columns, with the fingerprints of before."""

import hashlib
import os
import tracemalloc
from pathlib import Path

from pipeline.core.progress import silent
from pipeline.ingestion.sources.members import list_members
from pipeline.storage import files


def test_the_files_of_a_folder_are_entries_in_the_order_of_their_names(tmp_path: Path) -> None:
    for number, name in enumerate(("b/2.jpg", "b.jpg", "a/é.jpg", "c")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(number))
        os.utime(path, ns=(10**18 + number, 10**18 + number))
    expected = [
        files.Entry("a/é.jpg", 2, 10**18 + 2),
        files.Entry("b.jpg", 1, 10**18 + 1),
        files.Entry("b/2.jpg", 0, 10**18),
        files.Entry("c", 3, 10**18 + 3),
    ]
    entries = files.list_tree(str(tmp_path)).entries
    assert list(entries) == entries[:] == files.list_entries(str(tmp_path)) == expected
    assert (entries[-1], entries[1:3], len(entries)) == (expected[-1], expected[1:3], 4)
    lines = [f"{entry.name} {entry.size} {entry.modified_ns}" for entry in expected]
    digest = hashlib.sha256("\n".join([str(tmp_path), *lines, "x gone"]).encode()).hexdigest()
    assert files.fingerprint_of(str(tmp_path), entries, {"x": "gone"}) == digest
    assert files.fingerprint_of(str(tmp_path), expected[::-1], {"x": "gone"}) == digest
    assert list(files.list_tree(str(tmp_path / "missing")).entries) == []


def test_a_listing_of_many_files_is_small_and_names_their_objects(tmp_path: Path) -> None:
    """Python's memory: a name, and numbers in arrays. A URI for each file took as much again, and so did an `Entry`."""
    for number in range(1000):
        (tmp_path / f"{number % 50:02d}").mkdir(exist_ok=True)
        (tmp_path / f"{number % 50:02d}" / f"n{number:05d}_with_a_name_as_long_as_those_of_imagenet.JPEG").touch()
    list_members(str(tmp_path), "", silent)  # what is imported and cached on the way doesn't count
    tracemalloc.start()
    listing = list_members(str(tmp_path), "", silent)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [listing.objects[at] for at in (0, 999)] == [str(tmp_path / listing.names[at]) for at in (0, 999)]
    assert listing.only([5, 7]).objects[:] == [str(tmp_path / listing.names[row]) for row in (5, 7)]
    assert kept < 200 * 1000
    assert peak < 450 * 1000
