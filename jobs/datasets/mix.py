"""Makes one data set of several, without copying an image: to train on them in stated shares.

Examples:
    uv run jobs/datasets/mix.py --sources photos=data/photos drawings=data/drawings --out data/mixed
    uv run jobs/datasets/mix.py --sources a=s3://bucket/a b=s3://bucket/b --out s3://bucket/both
"""

import jobs  # noqa: F401 - first: from here on a signal ends the program in one line

# isort: split
from dataclasses import dataclass
from typing import Annotated

from jobs.terminal import command
from pipeline.core.errors import DatasetError
from pipeline.core.shares import counted
from pipeline.dataset.mixture import mix
from pipeline.storage import files


@dataclass(frozen=True)
class Args:
    """Flags of the command."""

    sources: Annotated[tuple[str, ...], command.option("data sets, each with a name of its own", "NAME=URI ...")]
    out: Annotated[str, command.option("folder of the new data set, which lists their shards", "URI")]


def main(args: Args) -> None:
    """Writes the mixture and prints what it holds. Raises DatasetError if the sources can't be mixed."""
    sources: dict[str, str] = {}
    for each in args.sources:
        name, equals, uri = each.partition("=")
        if not equals or not uri:
            raise DatasetError(f"--sources {each}: say NAME=URI, such as photos=data/photos")
        if name in sources:
            raise DatasetError(f"--sources {each}: {name} is named twice; give each data set a name of its own")
        sources[name] = uri
    data = mix(sources, files.absolute(args.out))
    command.print_table(
        f"\n{data.name}, of {len(sources)} data sets",
        [
            *((name, counted(split.rows, "row")) for name, split in data.splits.items()),
            ("digest", data.digest),
            ("train in shares", f'--set sampling.shares="{", ".join(f"{name}=1" for name in sources)}"'),
        ],
    )


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "")
