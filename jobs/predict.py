"""Writes a trained model's class predictions for a folder, an archive or a bucket of images, by Ray Data.

An image that cannot be read or decoded gets a row with the reason, and the command still ends with 0. If the command is
interrupted, the same command continues after the last finished part.

A model of a registry is named by its alias. With --shadow another one answers the same images afterwards, and what
both answered is stored below the registry (`jobs/registry.py review`); the answers are the first one's alone.

Examples:
    uv run jobs/predict.py --checkpoint runs/photos --input photos --out predictions
    uv run jobs/predict.py --registry work/registry --alias champion --shadow candidate --input new --out predictions
    uv run jobs/predict.py --checkpoint runs/photos --input new/1.jpg "more/*.png" --out predictions
    uv run jobs/predict.py --checkpoint runs/photos --input s3://bucket/new --out s3://bucket/predictions --workers 4
"""

import jobs  # noqa: F401 - first: from here on a signal ends the program in one line

# isort: split
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from jobs.arguments.evaluation import CHECKPOINT_HELP, WorkerArgs, evaluation_option
from jobs.terminal import command
from pipeline.config.choices import TestViews
from pipeline.core.errors import RegistryError
from pipeline.storage import files

if TYPE_CHECKING:
    from pipeline.retraining.live.shadow import LivePrediction

_SHOWN = 5  # most frequent classes
RESUME_HINT = "the same command continues after the last finished part"


@dataclass(frozen=True)
class RegistryArgs:
    """A model of a registry, in place of --checkpoint."""

    registry: Annotated[str | None, command.option("registry of the model", "URI", "none")] = None
    alias: Annotated[str | None, command.option("alias or ID of the version that answers", "NAME", "champion")] = None
    shadow: Annotated[
        str | None,
        command.option("version that answers in its shadow: candidate, previous, an alias or an ID", "NAME", "none"),
    ] = None
    record: Annotated[bool, command.option("store the answers below the registry; --shadow does, too", "")] = False


@dataclass(frozen=True)
class Args:
    """Flags of the command."""

    input: Annotated[
        tuple[str, ...], command.option("folders, prefixes of a bucket, archives, images, or patterns", "URI...")
    ]
    out: Annotated[str, command.option("folder for the predictions, as Parquet", "URI")]
    checkpoint: Annotated[str | None, command.option(CHECKPOINT_HELP, "URI")] = None
    live: Annotated[RegistryArgs, command.group("registry")] = RegistryArgs()
    views: Annotated[TestViews | None, evaluation_option("views", "NAME", "the recipe's")] = None
    worker: Annotated[WorkerArgs, command.group("hardware")] = field(default_factory=WorkerArgs)


def main(args: Args) -> None:
    """Predicts, and prints a summary."""
    _check_model(args)
    with command.loading():
        from pipeline.evaluation.batch_predict.results import SUMMARY_NAME
        from pipeline.evaluation.batch_predict.run import predict
        from pipeline.retraining.live.shadow import LiveModels, predict_live
        from pipeline.retraining.registry_check import check_place

    live = None
    with command.Display() as display:
        if args.live.registry is None:
            assert args.checkpoint is not None
            result = predict(args.checkpoint, args.input, args.out, args.views, args.worker.make(), display)
        else:
            place, named = files.absolute(args.live.registry).rstrip("/"), args.live
            check_place(place)
            models = LiveModels(place, named.alias or "champion", named.shadow, named.record or bool(named.shadow))
            live = predict_live(models, args.input, args.out, args.views, args.worker.make(), display)
            result = live.result
    frequent = sorted(result.per_class.items(), key=lambda item: -item[1])[:_SHOWN]
    rate = ": they were finished before"
    if result.predicted_now:
        rate = f", {result.predicted_now / result.seconds:,.0f} images/s"
    command.print_table(
        f"\n{result.model} on {_inputs(args.input)}",
        [
            ("images", f"{result.images:,}{rate}"),
            ("not images", _skipped(result.skipped, result.skipped_kinds)),
            ("UNUSABLE" if result.unusable else "unusable", _unusable(result.unusable, result.first_errors)),
            ("most frequent", ", ".join(f"{name} {count:,}" for name, count in frequent if count)),
            ("test views", result.views),
            ("predictions", files.join(result.out, "part-*.parquet")),
            ("summary", files.join(result.out, SUMMARY_NAME)),
            *(_live_lines(args, live) if live else ()),
        ],
    )


def _check_model(args: Args) -> None:
    if (args.checkpoint is None) == (args.live.registry is None):
        raise RegistryError("give either --checkpoint URI, or --registry URI with --alias NAME (champion by default)")
    for name in ("alias", "shadow", "record"):
        if args.checkpoint is not None and getattr(args.live, name):
            raise RegistryError(f"--{name} names a model of a registry; give --registry URI instead of --checkpoint")


def _live_lines(args: Args, live: "LivePrediction") -> list[tuple[str, str]]:
    lines = [("version", f"{live.version} ({args.live.alias or 'champion'})")]
    if args.live.shadow:
        failure = f"; it failed, which is recorded: {live.failure}" if live.failure else ""
        shadow = f"{live.shadow} ({args.live.shadow})" if live.shadow else f"no {args.live.shadow} to answer"
        lines.append(("in its shadow", f"{shadow}{failure}"))
    return [*lines, *([("record", live.record)] if live.record else [])]


def _inputs(inputs: tuple[str, ...]) -> str:
    return files.absolute(inputs[0]) if len(inputs) == 1 else f"{inputs[0]} and {len(inputs) - 1:,} more"


def _skipped(count: int, kinds: dict[str, int]) -> str:
    named = ", ".join(f"{kind} {number:,}" for kind, number in list(kinds.items())[:_SHOWN])
    return f"{count:,} file{'' if count == 1 else 's'}{f' ({named})' if named else ''}"


def _unusable(count: int, first: tuple[str, ...]) -> str:
    return f"{count:,}, see the column error; first {first[0]}" if count else "none"


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "", RESUME_HINT)
