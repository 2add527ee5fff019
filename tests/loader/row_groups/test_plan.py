"""The planner's table: the figures of the simulation, for one node and for several, and errors in one line."""

import itertools

import numpy as np
import pytest

from jobs.arguments.recipe import RecipeArgs
from jobs.datasets import plan
from jobs.datasets.plan import Args
from jobs.terminal import command
from pipeline.config.presets import make_recipe
from pipeline.core.errors import PipelineError
from pipeline.dataset import manifest
from pipeline.dataset.row_reader import load_index
from pipeline.loader.row_groups.estimate import meeting_again, simulate
from pipeline.loader.row_groups.visits import NodeReads
from pipeline.loader.sample_order import Order

STREAMED = RecipeArgs(recipe="digits", set=(("residency=stream", "shuffle_window_row_groups=4"),))


def lines(args: Args, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    monkeypatch.setattr(command.console, "_width", 200)
    plan.main(args)
    return [line.split() for line in capsys.readouterr().out.splitlines() if "%" in line]


def test_the_table_says_what_the_simulation_says(
    digits_dataset: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = Args(digits_dataset, ("0", "100KB", "all"), ("2", "all"), nodes=2, workers_per_node=3, recipe=STREAMED)
    found = lines(args, capsys, monkeypatch)
    recipe, split = make_recipe("digits"), manifest.load(digits_dataset).split("train")
    cases = itertools.product((2, None), (0, 100_000, None))
    for line, (window, size) in zip(found, cases, strict=True):
        order = Order(split.row_group_rows, 0, recipe.global_batch_size, window)
        reads = NodeReads(order, load_index(digits_dataset, split), 6, (0, 1, 2))
        first, _, third = itertools.islice(simulate(reads, size), 3)
        assert line[0] == ("all" if window is None else str(window))
        place = 2 if size is None else 3  # "0.0001 GB" is two words
        assert line[place : place + 2] == [f"{2 * first.requests:,}", f"{2 * third.requests:,}"]
        assert line[-1] == f"{meeting_again(order):.2%}"


def test_rows_of_a_batch_meet_again_as_often_as_they_do() -> None:
    """Against all pairs; and by chance for a full permutation."""
    windowed = Order((8,) * 20, 3, 16, 2)
    batch_of = np.empty(160, dtype=int)
    for step in range(10, 20):
        batch_of[windowed.rows(step)] = step
    pairs = [pair for step in range(10) for pair in itertools.combinations(windowed.rows(step), 2)]
    share = float(np.mean([batch_of[a] == batch_of[b] for a, b in pairs]))
    assert meeting_again(windowed) == pytest.approx(share, abs=0.01)
    assert meeting_again(Order((8,) * 20, 3, 16)) == pytest.approx(15 / 159, abs=0.02)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"nodes": 0}, "nodes=0, workers-per-node=1: give 1 or more of each"),
        ({"window": ("0",)}, "window=0: no such number of row groups; give 1 or more, or all"),
        ({"cache_size": ("much",)}, "cache-size=much: no such size"),
        ({"recipe": RecipeArgs(recipe="digits")}, "recipe=digits reads all images into memory once"),
        ({"data": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_planned_is_one_line(digits_dataset: str, changed: dict[str, object], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        plan.main(Args(**{"data": digits_dataset, "recipe": STREAMED, **changed}))
