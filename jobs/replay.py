"""Repeats the steps after a checkpoint and compares their losses with those that the run wrote down.

uv run jobs/replay.py --checkpoint RUN/checkpoints/STEP --data URI --steps 20
"""

import sys
import tempfile
from dataclasses import dataclass, replace
from typing import Annotated

from jobs import command, training
from pipeline.cluster import resources
from pipeline.cluster.remote_progress import remote_progress
from pipeline.cluster.session import quieten_ray, ray_session
from pipeline.core.errors import RecipeError
from pipeline.storage import files
from pipeline.training.job import fit_to_cluster


@dataclass(frozen=True)
class Args:
    """On a CPU, with as many workers as the run had, the same to the last bit. Ends with status 1 where they differ."""

    checkpoint: Annotated[str, command.option("a folder below RUN/checkpoints/, or a run, for its oldest", "URI")]
    data: Annotated[str, command.option("the data set of the run", "URI")]
    steps: Annotated[int, command.option("to repeat, as far as the run got", "N", "20")] = 20
    teacher: Annotated[str | None, command.option("the run that it learnt from, if it did", "URI")] = None
    tolerance: Annotated[float, command.option("of a loss, relative; for GPUs", "X", "0")] = 0.0


def main(args: Args) -> None:
    """Repeats, compares, says how it went."""
    if args.steps < 1:
        raise RecipeError(f"steps={args.steps} must be 1 or more")
    from pipeline.models import checkpoint
    from pipeline.training.replay import prepare, replay

    uri = files.absolute(args.checkpoint).rstrip("/")
    if f"/{checkpoint.FOLDER}/" not in uri and (steps := checkpoint.steps(uri)):
        uri = checkpoint.folder(uri, steps[0])
    with tempfile.TemporaryDirectory(prefix="replay-") as scratch, command.Display() as display:
        job, recorded = prepare(uri, files.absolute(args.data), scratch, args.steps, training.teacher(args.teacher))
        gpus = resources.count_gpus()
        alone = not gpus and job.num_workers == 1  # as a run in its own process has it
        use_gpu = resources.workers_use_gpus("auto", job.num_workers, gpus)
        job = replace(job, num_workers=0 if alone else job.num_workers, use_gpu=use_gpu)
        if not job.num_workers and job.recipe.residency == "resident":
            quieten_ray()
            done = replay(replace(job, progress=display), recorded)
        else:
            with ray_session(job.num_workers), remote_progress(display) as progress:
                done = replay(replace(fit_to_cluster(job, 0, display), progress=progress), recorded)
    pairs = list(zip(done.recorded, done.repeated, strict=True))
    worst = max(abs(new - old) / max(abs(old), 1e-12) for old, new in pairs)
    command.print_table(
        f"\n{len(pairs)} steps after {uri}",
        [
            ("same to the last bit", f"{len(pairs) - len(done.differing)} of {len(pairs)}"),
            ("largest difference", f"{worst:.3g}, relative"),
            ("first and last loss", f"{done.repeated[0]:.6f}, {done.repeated[-1]:.6f}"),
        ],
    )
    if worst > args.tolerance:
        command.console.print(f"DIFFERENT from step {done.differing[0]} on", style="bold red")
        sys.exit(1)


if __name__ == "__main__":
    command.run(main, Args, __doc__ or "")
