"""Every example runs, on real photographs."""

import tarfile
from pathlib import Path

import pytest

from examples import load_and_predict, own_folder, own_training_loop
from tests.support.pictures.images import shared

CLASSES = {"n01440764": "tench", "n03000684": "chainsaw"}
SMALL = {"image_size_px": 64, "evaluate_resize_px": 64, "global_batch_size": 16, "epochs": 1}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder SPLIT/CLASS/NAME.jpg of 24 photographs for training and 8 for validation."""
    folder = tmp_path_factory.mktemp("examples") / "photos"
    left = {(split, name): count for split, count in (("train", 12), ("val", 4)) for name in CLASSES.values()}
    with tarfile.open(shared("imagenette-mini.tar")) as tar:
        for member in tar:
            split, _, rest = member.name.partition("/")
            wnid, _, file = rest.partition("/")
            place = split, CLASSES.get(wnid, "")
            if left.get(place, 0):
                left[place] -= 1
                (folder.joinpath(*place)).mkdir(parents=True, exist_ok=True)
                data = tar.extractfile(member)
                assert data is not None
                folder.joinpath(*place, file).write_bytes(data.read())
    assert not any(left.values())
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, ray_cluster: None) -> Path:
    """A run on the photographs, trained by the first example."""
    place = photos.parent / "run"
    own_folder.main(str(photos), str(place), **SMALL)
    return place


@pytest.mark.ray
def test_own_folder_ingests_trains_and_reports(run: Path) -> None:
    assert (run / "report.html").exists()
    assert (run / "result.json").exists()


@pytest.mark.ray
def test_own_training_loop_trains_on_every_batch(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accuracy = own_training_loop.main(f"{run}-data", **SMALL)
    assert 0 <= accuracy <= 1
    assert "of 8" in capsys.readouterr().out


@pytest.mark.ray
def test_load_and_predict_prints_a_line_for_each_image(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = sorted(map(str, (photos / "val").rglob("*.JPEG")))
    load_and_predict.main(str(run), *images)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == images
    assert all("tench" in line and "chainsaw" in line for line in lines)
