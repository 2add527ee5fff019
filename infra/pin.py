"""Write the resolved versions of all packages into pyproject.toml, as constraints without addresses.

`uv.lock` would do that, too, but it records where each package came from. Run it after a change of dependencies:

    uv run infra/pin.py
"""

import re
import subprocess
from pathlib import Path

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
BLOCK = re.compile(r"(?<=constraint-dependencies = \[\n).*?(?=^\]$)", re.DOTALL | re.MULTILINE)


def main() -> None:
    """Resolves without the old constraints, for every Python version and platform, and rewrites the block."""
    text = PYPROJECT.read_text()
    PYPROJECT.write_text(BLOCK.sub("", text))
    try:
        subprocess.run(["uv", "lock", "--quiet"], check=True)
        export = ["uv", "export", "--quiet", "--no-hashes", "--no-header", "--no-annotate", "--no-emit-project"]
        lines = subprocess.run(
            [*export, "--all-groups", "--all-extras"], check=True, capture_output=True, text=True
        ).stdout.split("\n")
    except BaseException:
        PYPROJECT.write_text(text)
        raise
    block = "".join(f'  "{line}",\n' for line in lines if line.strip())
    PYPROJECT.write_text(BLOCK.sub(lambda _: block, text))


if __name__ == "__main__":
    main()
