"""load_model: the predictions of an evaluation in plain PyTorch, for every kind of input, without Ray."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.core.errors import CheckpointError, SourceError
from pipeline.dataset.manifest import load
from pipeline.dataset.parquet import read_rows
from pipeline.evaluation import LoadedModel, load_model
from pipeline.evaluation.predictions import read_predictions
from pipeline.loader.decode import MAX_ERROR
from tests.support.pictures.images import jpeg


@pytest.fixture(scope="module")
def model(trained: str) -> LoadedModel:
    return load_model(trained, views="none")


@pytest.fixture(scope="module")
def stored(digits_dataset: str) -> list[bytes]:
    """The encoded images of val, in row order."""
    split = load(digits_dataset).split("val")
    images: list[bytes] = read_rows(digits_dataset, split, np.arange(split.rows))["image"].to_pylist()
    return images


@pytest.fixture(scope="module")
def paths(stored: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("stored")
    for number, data in enumerate(stored):
        (folder / f"{number:04d}.png").write_bytes(data)
    return sorted(folder.iterdir())


def test_predictions_of_stored_images_are_those_of_the_evaluation_to_the_last_bit(
    model: LoadedModel, paths: list[Path], evaluation: str
) -> None:
    result, (expected, _) = model.predict(paths), read_predictions(evaluation)
    assert result.probabilities.dtype == np.float32
    assert result.probabilities.shape == (359, 10)
    best_five = np.take_along_axis(result.probabilities, expected.classes, axis=1)
    assert np.array_equal(best_five, expected.probabilities)
    assert np.array_equal(result.indices, expected.classes[:, 0])
    assert result.names[0] == model.classes[expected.classes[0, 0]]
    assert [name for name, _ in result.top(5)[0]] == [model.classes[index] for index in expected.classes[0]]


def test_loading_leaves_the_random_numbers_of_its_caller_alone(trained: str) -> None:
    state = torch.random.get_rng_state()
    load_model(trained)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_paths_pil_images_arrays_and_a_tensor_give_the_same(
    model: LoadedModel, paths: list[Path], stored: list[bytes]
) -> None:
    images = [Image.open(io.BytesIO(data)) for data in stored[:40]]
    arrays = [np.asarray(image.convert("RGB")) for image in images]
    tensor = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    expected = model.predict(paths[:40]).probabilities
    for same in ([str(path) for path in paths[:40]], images, arrays, tensor, (image for image in images)):
        assert np.array_equal(model.predict(same).probabilities, expected)
    mixed = model.predict([paths[0], images[1], arrays[2], tensor[3], *paths[4:40]]).probabilities
    assert np.array_equal(mixed, expected)
    assert len(model.predict(images[0])) == len(model.predict(arrays[0])) == len(model.predict(paths[0])) == 1
    assert len(model.predict([])) == 0
    small = model.predict(paths[:40], batch_size=7).probabilities
    np.testing.assert_allclose(small, expected, atol=1e-6)  # kernels may round otherwise for another batch size


def test_images_of_any_size_and_format_are_resized_and_cropped(model: LoadedModel, tmp_path: Path) -> None:
    """JPEGs given as pixels are decoded by PIL: other roundings than the kernel's, within the decoders' tolerance."""
    sizes = [(60, 41), (33, 90), (32, 32), (300, 200)]
    data = [jpeg(number, *size) for number, size in enumerate(sizes)]
    for number, each in enumerate(data):
        (tmp_path / f"{number}.jpg").write_bytes(each)
    by_path = model.preprocess(sorted(tmp_path.iterdir()))
    by_pixels = model.preprocess([Image.open(io.BytesIO(each)) for each in data])
    assert by_path.shape == by_pixels.shape == (4, 32, 32, 3)
    assert np.abs(by_path.astype(int) - by_pixels).mean() <= MAX_ERROR
    assert model.predict(Image.new("LA", (50, 40))).probabilities.sum() == pytest.approx(1)
    assert model.predict(Image.new("P", (50, 40))).probabilities.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ("/nowhere.png", SourceError, "/nowhere.png: no such file"),
        (np.zeros((4, 4), np.uint8), ValueError, r"must be uint8 \[H, W, 3\]"),
        (np.zeros((4, 4, 3), np.float32), ValueError, "float32"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), ValueError, r"must be \[3, H, W\]"),
        (7, TypeError, "int is no image"),
    ],
)
def test_what_is_no_image_is_an_error(model: LoadedModel, wrong: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        model.predict(wrong)


def test_a_damaged_file_and_an_unfinished_run_are_named(model: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(jpeg(3)[:-200])
    with pytest.raises(SourceError, match=r"cut\.jpg: truncated"):
        model.predict([tmp_path / "cut.jpg"])
    with pytest.raises(CheckpointError, match=r"run=.*: no finished run"):
        load_model(tmp_path)


def test_loading_and_predicting_does_not_import_ray(trained: str, paths: list[Path]) -> None:
    lines = (
        "import sys; from pipeline.evaluation import load_model; "
        f"print(load_model({trained!r}).predict({str(paths[0])!r}).names); assert 'ray' not in sys.modules"
    )
    finished = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
