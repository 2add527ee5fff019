"""Lines that a run shows while it trains: where it begins, the progress of its steps, the scores of each evaluation."""

from typing import Any

from pipeline.core.shares import counted
from pipeline.loader.stage_times import largest_shares
from pipeline.models.run_state import RunState


def start_line(step: int, num_steps: int, steps_per_epoch: int, checkpoint_uri: str | None) -> str:
    """Returns where a run begins: at its first step, or at a checkpoint.

    "continuing at step 350 of 1,200 (epoch 4.2) from checkpoint runs/x/checkpoints/000000350"
    """
    if checkpoint_uri is None:
        epochs = num_steps / steps_per_epoch
        unit = "epoch" if epochs == 1 else "epochs"
        return f"training {counted(num_steps, 'step')}: {epochs:g} {unit} of {counted(steps_per_epoch, 'step')}"
    where = f"step {step:,} of {num_steps:,} (epoch {epoch_of(step, steps_per_epoch)})"
    return f"continuing at {where} from checkpoint {checkpoint_uri}"


def epoch_of(step: int, steps_per_epoch: int) -> str:
    """Returns the epochs that `step` steps are, with two digits at most: "4", "4.27"."""
    return f"{step / steps_per_epoch:.2f}".rstrip("0").rstrip(".")


def progress_line(state: RunState) -> str:
    """Returns the newest line of the history, for the display."""
    line = state.history[-1]
    loss = "none (all steps skipped)" if line["loss"] is None else f"{line['loss']:.3f}"
    text = f"epoch {line['epoch']:.2f}  loss {loss}  {line['images_per_second']:,.0f} images/s  "
    left_out = f"  left out: {len(state.quarantined):,}" if state.quarantined else ""
    skipped = f"  steps skipped: {len(state.skipped):,}" if state.skipped else ""
    return text + largest_shares(line["seconds"]) + left_out + skipped


def evaluation_line(evaluations: list[dict[str, Any]], steps_per_epoch: int) -> str:
    """Returns the scores of the newest evaluation beside the best top-1 so far, of which the first counts.

    "epoch 4  top-1 98.1 %  loss 0.31  best 98.3 % (epoch 3)"
    """
    newest, best = evaluations[-1], max(evaluations, key=lambda scores: scores["top1"])
    loss = "not finite" if newest["loss"] is None else f"{newest['loss']:.2f}"
    return (
        f"epoch {epoch_of(newest['step'], steps_per_epoch)}  top-1 {100 * newest['top1']:.1f} %  loss {loss}  "
        f"best {100 * best['top1']:.1f} % (epoch {epoch_of(best['step'], steps_per_epoch)})"
    )
