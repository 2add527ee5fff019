"""CIFAR-10's recipes, seed by seed: seconds and top-1. It runs only where it is named: `--sections records`."""

from jobs.bench.gpu.child import Bench
from jobs.bench.gpu.cifar10.seconds import Ours, line, summary
from jobs.bench.gpu.clock import now
from jobs.bench.gpu.pictures import is_original_cifar

_RECIPES = ("cifar10-96", "cifar10-95", "cifar10-94", "seed-cnn", "cifar10-96-unfiltered")
_SEEDS = 5


def run(bench: Bench) -> None:
    """Trains with each recipe in turn, as many seeds as there is time for."""
    original = is_original_cifar(bench.settings)
    bench.record("original_pixels", original, "CIFAR-10's own pixels" if original else "not CIFAR-10 in full")
    first = Ours(bench, _RECIPES[0])
    recipes = {name: Ours(bench, name, first.batches) for name in _RECIPES}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in recipes}
    seconds = dict.fromkeys(recipes, 0.0)  # of the last run of each
    for seed in range(1 if bench.small else _SEEDS):
        for name, recipe in recipes.items():
            if not bench.has(1.1 * seconds[name], f"{name}, seed {seed}"):
                continue
            with bench.part(f"{name}, seed {seed}"):
                start = now(bench.device)
                runs[name].append({"seed": seed, **recipe.run(seed)})
                seconds[name] = now(bench.device) - start
                bench.record(name, summary(runs[name]), line(runs[name]))
