"""Predictions for odd images: each gets a sample or a reason, and none ends a prediction."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation.batch_predict.decode_task import decode_images, decode_unit
from pipeline.evaluation.batch_predict.images import find_images
from pipeline.ingestion.image_check import ImageHandling, check_image
from pipeline.loader.decode import best_decoder
from pipeline.loader.transform import Transform
from tests.support.pictures.images import jpeg, make_tree
from tests.support.pictures.mutations import samples

VIEW = Transform(32, 36, decoder="simplejpeg")


def test_images_of_all_kinds_and_shapes_have_a_sample() -> None:
    images = {**samples(), **{f"{h}x{w}": jpeg(1, h, w) for h, w in [(3800, 1), (1, 3800), (1, 1), (2, 2)]}}
    for decoder in {best_decoder(), "simplejpeg"}:
        view = Transform(32, 36, decoder=decoder)
        pixels, errors = decode_images(list(images.values()), list(images), view)
        assert errors == [""] * len(images)
        assert all(pixels.reshape(len(images), -1).any(axis=1))


def test_an_image_on_which_the_process_dies_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(tmp_path / "tree", per_class=4)
    table = find_images([str(tmp_path / "tree")], str(tmp_path / "spool"), lambda *_: None).table
    plain, no_errors = decode_unit(table, VIEW)
    names = table["name"].to_pylist()

    def deadly(data: bytes, name: str, handling: ImageHandling) -> object:
        if name == names[3]:
            os.kill(os.getpid(), signal.SIGSEGV)
        return check_image(data, name, handling)

    monkeypatch.setattr("pipeline.evaluation.batch_predict.decode_task.check_image", deadly)
    pixels, errors = decode_unit(table, VIEW, is_isolated=True)
    assert no_errors == [""] * len(names)
    assert errors == [
        "crash: the process that decodes it ends with SIGSEGV" if n == 3 else "" for n in range(len(names))
    ]
    plain[3] = 0
    assert np.array_equal(pixels, plain)
