"""Settings of a search."""

from dataclasses import dataclass

from pipeline.config.recipe import Recipe
from pipeline.core.errors import RecipeError
from pipeline.training.search.space import Space, Values, default_space, draw_trials, with_values


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How a search is carried out. Raises RecipeError on construction for values that can't work."""

    num_trials: int
    """Trials to start, the first with the recipe itself; most are stopped early."""

    space: Space | None = None
    """Fields of the recipe to search, and their ranges. None: `default_space`."""

    seed: int = 0
    """Seed of the drawn values, and of each training."""

    hold_out: float = 0.1
    """Share of train, in (0, 1), that trials are evaluated on and not trained on."""

    grace_epochs: float = 1
    """Epochs before a trial may be stopped; more where the ranking settles late."""

    reduction_factor: int = 3
    """ASHA's eta: at each milestone, the best 1 / reduction_factor of the trials continue."""

    num_workers: int | None = None
    """Training processes of a trial, 0 for the trial's own; None: 1 on GPUs, else 0."""

    cpus_per_worker: int = 1
    """CPUs of each training process."""

    def __post_init__(self) -> None:
        minima = {
            ("num_trials", "--trials"): 1,
            ("reduction_factor", "--keep-one-of"): 2,
            ("cpus_per_worker", "--cpus-per-trial"): 1,
            ("grace_epochs", "--grace-epochs"): 0.01,
        }
        for (name, flag), minimum in minima.items():
            if getattr(self, name) < minimum:
                raise RecipeError(f"{name}={getattr(self, name)} ({flag}) must be {minimum} or more")

    def draw(self, recipe: Recipe) -> list[Values]:
        """Returns the values of each trial. Raises RecipeError if the recipe, or a trial, can't have one of them."""
        drawn = draw_trials(self.space or default_space(recipe), self.num_trials, recipe, self.seed)
        for values in drawn:
            fit = with_values(recipe, values).fit_head
            if fit != "none":
                raise RecipeError(
                    f"fit_head={fit}: trials of a search start without pretrained weights; set fit_head=none"
                )
        return drawn
