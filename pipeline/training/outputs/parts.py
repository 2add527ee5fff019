"""Parts that the page of a run has while it trains and after it: use of the machine, the command, the recipe."""

import shlex
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from pipeline.training.job import TrainJob
from pipeline.training.outputs.inline_charts import line_chart


def machine_charts(samples: list[dict[str, Any]]) -> list[tuple[Markup, str]]:
    """Returns (chart, caption) of CPU and GPU, and of memory, over the time in which the run ran."""
    if len(samples) < 2:
        return []
    last, times = samples[-1], [0.0]
    for before, each in pairwise(samples):  # the time between an end and the next start doesn't count
        times.append(times[-1] + (0.0 if each.get("begins") else each["time"] - before["time"]))
    unit, seconds = ("h", 3600) if times[-1] >= 7200 else ("min", 60) if times[-1] >= 120 else ("s", 1)

    def column(name: str) -> list[tuple[float, float]]:
        return [(at / seconds, each[name]) for at, each in zip(times, samples, strict=True) if name in each]

    use = {"CPU": column("cpu_percent"), "GPU": column("gpu_percent")}
    memory = {"memory": column("memory_gb"), "GPU memory": column("gpu_memory_gb")}
    sizes = f"of {last['memory_total_gb']:,.0f} GB"
    if "gpu_memory_total_gb" in last:
        sizes += f", GPU {last['gpu_memory_total_gb']:,.0f} GB"
    return [
        (line_chart(use, unit, " %", least_top=100), "CPU of all cores, and GPU, of the node of worker 0, in percent"),
        (line_chart(memory, unit, " GB"), f"Memory in use on the node of worker 0, {sizes}"),
    ]


def command_of(job: TrainJob, starts: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the command that began the run, or one that repeats it where it was begun from Python."""
    typed = next((start["command"] for start in starts if start.get("command")), "")
    words = ["image-pipeline", "train", "--data", job.dataset, "--recipe", job.recipe.name, "--seed", str(job.seed)]
    return {"command": typed or shlex.join(words), "command_is_typed": bool(typed)}


def flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Returns (name, value) of each value; of those in a nested dictionary with the names joined by a dot."""
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        rows += flat(value, f"{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return rows
