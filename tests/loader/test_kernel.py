"""The place of the compiled decoder: a cache of this machine, whatever lies beside the source or in the cache."""

import importlib.util
import platform
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.native import library
from pipeline.dataset.native.library import KernelUnavailableError, compilers, library_name
from pipeline.loader.native.kernel import load_kernel

_FAKE_COMPILER = """#!/bin/sh
echo compiled >> {log}
while [ "$1" != -o ]; do shift; done
cp {library} "$2"
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a checkout's native/, an empty cache, and a compiler that counts its calls in `log`."""
    native = tmp_path / "native"
    native.mkdir()
    (native / "decode.c").write_text("int decode_batch(void) { return 0; }")
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    real = tmp_path / "real.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(real), str(native / "decode.c")], check=True)
    compiler = tmp_path / "cc"
    compiler.write_text(_FAKE_COMPILER.format(log=tmp_path / "log", library=real))
    compiler.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(compiler))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(library, "temporary_home", lambda: str(tmp_path / "temporary"))
    return tmp_path


def compiled(here: Path) -> int:
    """Returns how often the compiler has run."""
    return len((here / "log").read_text().splitlines()) if (here / "log").exists() else 0


def libraries(here: Path) -> list[Path]:
    """Returns the files in the cache."""
    return list((here / "cache" / "image-pipeline" / "native").iterdir())


def test_it_is_compiled_once_and_never_beside_its_source(here: Path) -> None:
    source = here / "native" / "decode.c"
    for _ in range(2):
        assert load_kernel(source).decode_batch() == 0
    assert compiled(here) == 1
    assert [path.name for path in source.parent.iterdir()] == ["decode.c"]
    source.write_text(source.read_text() + "// changed")
    load_kernel(source)
    assert compiled(here) == 2
    assert len(libraries(here)) == 2


@pytest.mark.parametrize("content", [b"", b"\x7fELF of another machine", b"\x7fELF" + bytes(200)])
def test_a_library_of_another_machine_is_compiled_anew(here: Path, content: bytes) -> None:
    source = here / "native" / "decode.c"
    name = library_name(source)
    for folder in (here / "cache" / "image-pipeline" / "native", source.parent):  # earlier versions: in the checkout
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    assert load_kernel(source).decode_batch() == 0
    assert compiled(here) == 1
    assert [path.name for path in libraries(here)] == [name]


def test_where_the_cache_cannot_be_written_it_is_kept_in_the_temporary_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "blocked").write_text("a file where the cache's folder should be")
    monkeypatch.setattr(library, "cache_folder", lambda: str(here / "blocked" / "image-pipeline"))
    load_kernel(here / "native" / "decode.c")
    assert list((here / "temporary" / "native").glob("decode-*.so"))


def test_a_compiler_that_makes_nothing_usable_is_told(here: Path) -> None:
    (here / "real.so").write_text("no library")
    with pytest.raises(KernelUnavailableError, match="compiled here, but it can't be loaded"):
        load_kernel(here / "native" / "decode.c")


def test_another_compiler_is_tried_where_the_first_one_fails(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = here / "broken"
    broken.write_text("#!/bin/sh\necho no headers: error >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", f"{broken} -option")
    monkeypatch.setattr(shutil, "which", lambda name: name if name == str(broken) else str(here / "cc"))
    assert load_kernel(here / "native" / "decode.c").decode_batch() == 0
    monkeypatch.setattr(shutil, "which", lambda name: str(broken))
    (here / "native" / "decode.c").write_text("// another one")
    with pytest.raises(KernelUnavailableError, match="broken failed: no headers: error"):
        load_kernel(here / "native" / "decode.c")


def test_a_compiler_that_is_ended_leaves_none_of_its_files(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "temp").mkdir()
    monkeypatch.setenv("TMPDIR", str(here / "temp"))
    (here / "cc").write_text('#!/bin/sh\ntouch "$TMPDIR/cc123.s"\nkill -9 $$\n')
    with pytest.raises(KernelUnavailableError, match="cc failed"):
        load_kernel(here / "native" / "decode.c")
    assert list((here / "temp").iterdir()) == []
    assert libraries(here) == []


# --- every compiler, and other CPUs ------------------------------------------------------------------------------

PROGRAM = Path(__file__).parents[1] / "support" / "pictures" / "portable_decode.c"
FLAGS = ["-O3", "-ffp-contract=off", "-w"]


def hashes(program: Path, pictures: list[str], *emulator: str) -> list[str]:
    """Returns status and hash of each picture, as our own decoder decodes it."""
    command = [*emulator, str(program), "48", *pictures]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of the program: JPEGs with every subsampling that our decoder knows, restart markers, odd sizes."""
    folder, arguments = tmp_path_factory.mktemp("pictures"), []
    generator = np.random.default_rng(0)
    for number, (subsampling, width, height) in enumerate(product((0, 1, 2), (33, 200), (64, 151))):
        smooth = generator.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        path = folder / f"{number}.jpg"
        Image.fromarray(smooth).resize((width, height), Image.Resampling.BICUBIC).save(
            path, subsampling=subsampling, quality=60 + 3 * number, restart_marker_blocks=number % 3
        )
        box = (height // 7, width // 5, height * 2 // 3, width * 3 // 5)
        arguments += [str(each) for each in (path, height, width, *box, number % 2)]
    return arguments


@pytest.mark.slow
def test_every_compiler_and_every_cpu_gives_the_same_pixels(pictures: list[str], tmp_path: Path) -> None:
    """All compilers that are here, and arm64 by an emulator where zig and QEMU are here."""
    found: dict[str, list[str]] = {}
    for number, compiler in enumerate(compilers()):
        out = tmp_path / f"{number}"
        subprocess.run([*compiler, *FLAGS, "-o", str(out), str(PROGRAM)], check=True)
        found[" ".join(compiler)] = hashes(out, pictures)
    if importlib.util.find_spec("ziglang"):
        headers = tmp_path / "headers"
        headers.mkdir()
        for header in [*Path("/usr/include").glob("j*.h"), *Path("/usr/include").glob("*/jconfig.h")]:
            shutil.copy(header, headers)
        for target in ("x86_64-linux-musl", "aarch64-linux-musl"):
            out = tmp_path / target
            zig = [sys.executable, "-m", "ziglang", "cc", "-target", target, "-static", f"-I{headers}"]
            subprocess.run([*zig, *FLAGS, "-o", str(out), str(PROGRAM)], check=True)
            cpu = target.split("-")[0]
            emulator = None if cpu == platform.machine() else shutil.which(f"qemu-{cpu}-static")
            if cpu == platform.machine() or emulator:
                found[target] = hashes(out, pictures, *filter(None, [emulator]))
    if not found:
        pytest.skip("no C compiler")
    expected = next(iter(found.values()))
    assert len(expected) == len(set(expected)) == 12
    assert all(line.startswith("0 ") for line in expected)
    assert all(lines == expected for lines in found.values()), found
