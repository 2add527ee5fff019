"""The place of the compiled decoder: a cache of this machine, whatever lies beside the source or in the cache."""

import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.loader.native import kernel
from pipeline.loader.native.kernel import KernelUnavailableError, load_kernel

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
    library = tmp_path / "real.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(native / "decode.c")], check=True)
    compiler = tmp_path / "cc"
    compiler.write_text(_FAKE_COMPILER.format(log=tmp_path / "log", library=library))
    compiler.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kernel, "temporary_home", lambda: str(tmp_path / "temporary"))
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
    name = kernel._library_name(source)
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
    monkeypatch.setattr(kernel, "cache_folder", lambda: str(here / "blocked" / "image-pipeline"))
    load_kernel(here / "native" / "decode.c")
    assert list((here / "temporary" / "native").glob("decode-*.so"))


def test_a_compiler_that_makes_nothing_usable_is_told(here: Path) -> None:
    (here / "real.so").write_text("no library")
    with pytest.raises(KernelUnavailableError, match="compiled here, but it can't be loaded"):
        load_kernel(here / "native" / "decode.c")
