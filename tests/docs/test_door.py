"""The door of the package: every name is there, documented, and cheap to reach."""

import subprocess
import sys

import pytest

import pipeline


def loaded_after(code: str) -> set[str]:
    """Returns those of torch and ray that a new process has loaded after `code`."""
    check = "import sys; print(*({'torch', 'ray'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{check}"], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_neither_torch_nor_ray() -> None:
    assert not loaded_after("import pipeline")


def test_data_and_recipes_need_neither_torch_nor_ray() -> None:
    assert not loaded_after("from pipeline import Recipe, ingest, open_dataset, recipes; recipes['cifar10']")


@pytest.mark.parametrize("name", [name for name in pipeline.__all__ if name != "recipes"])
def test_a_name_of_the_door_is_documented(name: str) -> None:
    assert getattr(pipeline, name).__doc__
