"""The pieces that carry the proof to a bare machine: small enough, and unpacked again to what was packed."""

import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from infra.gpu_proof import pack

MIB = 1 << 20


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:xz") as tar:
        for name, content in files.items():
            pack.add_bytes(tar, name, content)
    return path


@pytest.fixture
def batches() -> dict[str, bytes]:
    some = np.random.default_rng(0).integers(0, 256, (100, 3073), np.uint8)
    sizes = {"data_batch_1": 2550, "test_batch": 50}  # one and a bit, and less than one mosaic
    return {f"cifar-10-batches-bin/{name}.bin": np.resize(some, (n, 3073)).tobytes() for name, n in sizes.items()}


@pytest.mark.slow
def test_what_is_packed_is_unpacked(tmp_path: Path, batches: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "PIECE_BYTES", MIB // 4)
    monkeypatch.setattr(pack, "pack_packages", lambda site, have, wheels: site.mkdir(parents=True))  # by a network
    cifar = archive(tmp_path / "cifar.tar.xz", {"cifar-10-batches-bin/readme.html": b"", **batches})
    photos = archive(tmp_path / "photos.tar", {"photo.jpg": b"JPEG"})
    pieces = tmp_path / "pieces"
    monkeypatch.setattr(sys, "argv", ["pack.py", "--out", str(pieces), "--cifar", str(cifar), "--photos", str(photos)])
    pack.main()
    assert len(list(pieces.glob("piece-*"))) > 3
    assert all(piece.stat().st_size <= MIB // 4 for piece in pieces.glob("piece-*"))

    proof = tmp_path / "proof"
    # A refused flag: unpacked, and the proof was started with the data that came along.
    variables = {"PROOF_DIR": str(proof), "PYTHON": sys.executable, "PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    command = ["sh", str(pieces / "start.sh"), "--seconds", "0"]
    last = max(pieces.glob("piece-*"))
    whole = last.read_bytes()
    for content, said in ((None, "is missing"), (whole[:-1], "isn't what was packed")):
        last.unlink()
        if content:
            last.write_bytes(content)
        refused = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True)
        assert refused.returncode == 1
        assert refused.stderr.startswith(f"{last} {said}")
        last.touch()
    last.write_bytes(whole)

    done = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--seconds 0 must be above 0" in done.stderr
    assert (proof / "photos.tar").read_bytes() == photos.read_bytes()
    with tarfile.open(proof / "cifar.tar") as tar:
        found = {member.name: tar.extractfile(member).read() for member in tar}
    assert found == batches
    assert (proof / "code" / "COMMIT").read_text().strip()

    # The decoder that came along is loaded where there is no compiler.
    code = "from pipeline.loader.decode import best_decoder; print(best_decoder())"
    environment = {"PYTHONPATH": str(proof / "code"), "XDG_CACHE_HOME": str(proof / "cache"), "PATH": ""}
    chosen = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert chosen.stdout.strip() == "kernel"


def test_pieces_fit_into_what_is_carried() -> None:
    assert pack.PIECE_BYTES < 60 * MIB


def test_a_wheel_is_unpacked_without_what_training_never_loads(tmp_path: Path) -> None:
    wheel = tmp_path / "ray-1-py3-none-any.whl"
    names = {
        "ray/__init__.py": True, "ray/rllib/x.py": False, "ray/jars/x.jar": False, "ray/dashboard/client/x.js": False,
        "ray/dashboard/agent.py": True, "ray/tests/x.py": False, "ray/x.pyx": False,
        "ray-1.data/purelib/extra.py": True,
    }  # fmt: skip
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as out:
        for name in names:
            out.writestr(name, "x")
    wheel.write_bytes(content.getvalue())
    pack.unpack_wheel(wheel, tmp_path / "site")
    found = {
        path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*") if path.is_file()
    }
    kept = {name.removeprefix("ray-1.data/purelib/") for name, is_kept in names.items() if is_kept}
    assert found == kept
