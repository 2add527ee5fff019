from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset import manifest
from pipeline.dataset.image_codec import encode_png
from pipeline.dataset.row_reader import load_index, read_images
from pipeline.versions.removal.traces import TRACE_BYTES, SearchedFile, TraceSearch, pixel_ranges, traces_of
from tests.support.pictures.images import jpeg


def noise(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def by_hand(image: bytes, data: bytes) -> set[int]:
    """Returns the offsets of the strings of 64 bytes, of 32 values or more, that are in both, found one by one."""
    strings = {image[at : at + TRACE_BYTES] for at in range(len(image) - TRACE_BYTES + 1)}
    telling = {string for string in strings if len(set(string)) >= 32}
    return {at for at in range(len(data) - TRACE_BYTES + 1) if data[at : at + TRACE_BYTES] in telling}


@given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(0, 900), st.integers(0, 300), st.integers(0, 90))))
def test_every_string_is_found_wherever_it_begins(seed: int, pieces: list[tuple[int, int, int]]) -> None:
    image = noise(seed, 400) + bytes(200) + noise(seed + 1, 400)
    parts = [noise(seed + 2 + at, gap) + image[start : start + size] for at, (start, size, gap) in enumerate(pieces)]
    data = b"".join(parts)
    offsets, of_pixels = traces_of([image]).find(data)
    assert set(offsets.tolist()) == by_hand(image, data)
    assert of_pixels.all()  # neither JPEG nor PNG: all of it counts as pixels


def test_one_string_of_64_bytes_is_found_at_every_offset_and_one_of_63_is_not() -> None:
    image = noise(0, 1000)
    for offset in range(40):
        for size, found in ((64, [offset]), (63, [])):
            data = noise(1, offset) + image[100 : 100 + size] + noise(2, 50)
            assert traces_of([image]).find(data)[0].tolist() == found, (offset, size)


def test_zeros_and_areas_of_one_colour_say_nothing() -> None:
    flat = bytes(500) + bytes(range(7)) * 100
    assert not len(traces_of([flat]).find(flat)[0])


def test_the_headers_of_a_jpeg_are_told_from_its_pixels() -> None:
    one, other = jpeg(1, 100, 100), jpeg(2, 100, 100)
    offsets, of_pixels = traces_of([one]).find(other)
    assert len(offsets)  # the tables that every encoder writes
    assert not of_pixels.any()
    offsets, of_pixels = traces_of([one]).find(one)
    first = pixel_ranges(one)[0][0]
    assert (offsets[of_pixels] >= first).all()
    assert of_pixels.sum() > (len(one) - first) * 0.9


def test_the_pixels_of_a_small_png_count_though_they_are_shorter_than_a_string() -> None:
    image = encode_png(np.random.default_rng(0).integers(0, 256, (3, 3, 3), dtype=np.uint8))
    start, stop = pixel_ranges(image)[0]
    assert stop - start < TRACE_BYTES < len(image)
    assert traces_of([image]).find(image)[1].any()


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_values_are_found_in_compressed_parquet_files(tmp_path: Path, compression: str) -> None:
    image = noise(0, 300)
    table = pa.table({"key": ["a", "b"], "thumbnail": [noise(1, 300), image]})
    path = str(tmp_path / "table.parquet")
    pq.write_table(table, path, compression=compression)
    search = TraceSearch([traces_of([image])])
    found = search(SearchedFile(path, Path(path).stat().st_size))
    assert set(found["file"].to_pylist()) == {path}
    assert (min(found["offset"].to_pylist()) == -1) == (compression == "zstd")
    pq.write_table(table.slice(0, 1), path, compression=compression)
    assert not search(SearchedFile(path, Path(path).stat().st_size)).num_rows


def test_a_file_that_is_called_parquet_and_is_none_is_searched_in_its_bytes(tmp_path: Path) -> None:
    image = noise(0, 300)
    (tmp_path / "odd.parquet").write_bytes(b"x" * 10 + image)
    found = TraceSearch([traces_of([image])])(SearchedFile(str(tmp_path / "odd.parquet"), 310))
    assert found["offset"].to_pylist() == list(range(10, 10 + 300 - 63))


def test_a_string_across_two_parts_that_are_read_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.versions.removal.traces._CHUNK_BYTES", 256)
    image = noise(0, 64)
    (tmp_path / "file").write_bytes(noise(1, 230) + image + noise(2, 1000))
    found = TraceSearch([traces_of([image])])(SearchedFile(str(tmp_path / "file"), 1294))
    assert found["offset"].to_pylist() == [230]


def test_headers_in_the_images_of_a_shard_are_left_out_and_pixels_and_strays_are_not(tree_dataset: str) -> None:
    shard = manifest.load(tree_dataset).split("train").shards[0]
    index = load_index(tree_dataset, manifest.load(tree_dataset).split("train"))
    path, own = Path(tree_dataset) / shard.path, read_images(index, np.array([0]))[0]
    file = SearchedFile(str(path), path.stat().st_size, f"{tree_dataset}/{shard.provenance_path}")
    other = TraceSearch([traces_of([jpeg(4711, 90, 90)])])
    assert not other(file).num_rows  # the same tables are in every image
    assert other(replace(file, provenance="")).num_rows > shard.rows
    found = TraceSearch([traces_of([bytes(own)])])(file)
    assert found["of_pixels"].to_pylist() == [True] * found.num_rows
    first = int(index.offset[0])
    assert min(found["offset"].to_pylist()) == first + pixel_ranges(bytes(own))[0][0]
