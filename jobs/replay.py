"""Repeats the steps after a checkpoint, and compares their losses with those that the run recorded.

With as many workers as the run had they are the same to the last bit: on CPUs, and on GPUs of the same kind if the run
was trained with --deterministic. Ends with status 1 if they differ by more than --tolerance.

Examples:
uv run jobs/replay.py --checkpoint runs/first --data data/photos
uv run jobs/replay.py --checkpoint runs/first/checkpoints/000000200 --data data/photos --steps 50
"""

import jobs  # noqa: F401 - first: from here on a signal ends the program in one line

# isort: split
import sys
from dataclasses import dataclass
from typing import Annotated

from jobs.terminal import command
from pipeline.core.errors import RecipeError
from pipeline.core.progress import begin
from pipeline.core.shares import counted


@dataclass(frozen=True)
class Args:
    """Flags of a replay."""

    checkpoint: Annotated[str, command.option("folder below RUN/checkpoints/, or a run, for its oldest", "URI")]
    data: Annotated[str, command.option("data set of the run", "URI")]
    steps: Annotated[int, command.option("steps to repeat, as far as the run got", "N", "20")] = 20
    teacher: Annotated[str | None, command.option("run that it learnt from, if it did", "URI")] = None
    tolerance: Annotated[float, command.option("largest relative difference of a loss; for GPUs", "X", "0")] = 0.0


def main(args: Args) -> None:
    """Repeats the steps, and prints how many losses are the same."""
    if args.steps < 1:
        raise RecipeError(f"steps={args.steps} must be 1 or more")
    with command.Display() as display:
        begin(display, "loading PyTorch")
        from pipeline.training.replay import replay_checkpoint

        done = replay_checkpoint(args.checkpoint, args.data, args.steps, args.teacher, display)
    count, differing = len(done.recorded), done.differing
    command.print_table(
        f"\n{counted(count, 'step')} after step {done.first} of {args.checkpoint}",
        [
            ("same to the last bit", f"{count - len(differing)} of {count}"),
            ("largest difference", f"{done.largest_difference:.3g}, relative"),
            ("first and last loss", f"{done.repeated[0]:.6f}, {done.repeated[-1]:.6f}"),
        ],
    )
    if done.largest_difference > args.tolerance:
        command.console.print(f"DIFFERENT from step {differing[0]} on", style="bold red")
        sys.exit(1)


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "")
