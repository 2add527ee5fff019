"""False promotions, power and the wear of the validation set over years of nights: a simulation.

uv run jobs/bench/nights.py [--years 1000] [--rows 1000 5000 10000] [--seed 0]

The models are those that the guide's figures are of: 93 % accurate, and any two of them differ on 6 % of the images.
12 % of the images are undecided: a model is right on each of them with probability 1/2, one that is better by 0.5
points with 0.5 + 0.005 / 0.12. On the others all models agree. So the champion has luck with the validation images,
keeps it for as long as it stays, and is chosen for it. McNemar's test is the gate's: exact and one-sided.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from jobs.terminal import command
from pipeline.retraining.decision.sequential import Spent, account, next_level

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
UNDECIDED = 0.12  # share of the images
LEVEL = 0.05  # the gate's
DAY = 86_400.0
YEAR = 365  # nights
START = 60  # nights before models become better, in the tables of power
DEFAULT = "account, 1 a year"
LOCK_BOX_TESTS = ("none", "no loss", "not behind", "a gain")


@dataclass(frozen=True)
class Args:
    """Flags. With the defaults the tables take about two minutes."""

    years: Annotated[int, command.option("simulated workspaces, of a year each", "N", "1000")] = 1000
    rows: Annotated[tuple[int, ...], command.option("validation images", "N ...", "1000 5000 10000")] = (
        1000,
        5000,
        10_000,
    )
    seed: Annotated[int, command.option("of all draws", "N", "0")] = 0


# --- rules: the level of each night -------------------------------------------------------------------------------


class Rule:
    """Levels that are known before the first night."""

    def __init__(self, levels: Floats) -> None:
        self._levels = levels

    def level(self, night: int) -> float | Floats:
        """Returns the level of a night, counted from 0: one for all workspaces, or float64 [workspaces]."""
        return float(self._levels[night])

    def told(self, night: int, promoted: npt.NDArray[np.bool_]) -> None:
        """Takes the outcome of a night, bool [workspaces]."""


class Fallback(Rule):
    """Online fallback (Tian and Ramdas, 2021): a level that promoted is spent once more, in the next night."""

    def __init__(self, levels: Floats) -> None:
        super().__init__(levels)
        self._kept: Floats | float = 0.0

    def level(self, night: int) -> float | Floats:
        self._now = self._levels[night] + self._kept
        return self._now

    def told(self, night: int, promoted: npt.NDArray[np.bool_]) -> None:
        self._kept = np.where(promoted, self._now, 0.0)


class LordPlusPlus(Rule):
    """LORD++ (Javanmard and Montanari, 2018; Ramdas et al., 2017): limits the share of false promotions among all."""

    def __init__(self, alpha: float, first_wealth: float, nights: int, workspaces: int) -> None:
        super().__init__(np.zeros(0))
        self._gamma, self._alpha, self._first = gamma(nights), alpha, first_wealth
        self._all = np.tile(first_wealth * self._gamma, (workspaces, 1))
        self._promotions = np.zeros(workspaces, np.int64)

    def level(self, night: int) -> float | Floats:
        levels: Floats = self._all[:, night]
        return levels

    def told(self, night: int, promoted: npt.NDArray[np.bool_]) -> None:
        earned = np.where(self._promotions == 0, self._alpha - self._first, self._alpha) * promoted
        self._all[:, night + 1 :] += earned[:, None] * self._gamma[: self._all.shape[1] - night - 1]
        self._promotions += promoted


def gamma(tests: int) -> Floats:
    """Returns the shares of the level, float64 [tests], that Javanmard and Montanari (2018, equation 31) propose."""
    number = np.arange(1, tests + 1, dtype=np.float64)
    shares: Floats = 0.07720838 * np.log(np.maximum(number, 2)) / (number * np.exp(np.sqrt(np.log(number))))
    return shares


def account_levels(per_year: float, nights: int, days: float = 1.0) -> Floats:
    """Returns the levels of nights that are `days` apart, by the account of `sequential.py`."""
    spent = list[Spent]()
    for night in range(nights):
        time = night * days * DAY
        spent.append(Spent(str(night), time, next_level(account(spent, per_year, time), LEVEL)))
    return np.array([each.level for each in spent])


# --- the simulation -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What happens in a workspace."""

    rows: int  # validation images, those of the lock-box included
    nights: int = YEAR
    turnover: float = 0.0  # share of the validation images that is replaced each night
    gain: float = 0.0  # of top-1, by the challengers' true accuracy over the first champion's
    start: int = 0  # the first night with the gain
    noise: float = 0.0  # standard deviation of the challengers' true accuracy
    lock_box: float = 0.0  # share of the rows
    test: str = "no loss"  # of the lock-box: one of LOCK_BOX_TESTS


@dataclass
class Result:
    """What came of each workspace: arrays with a value for each."""

    false: Ints  # promotions of models that are no better than their champion
    worse: Ints  # promotions of models that are worse
    found: Floats  # nights from `start` on until the first promotion; inf for none
    optimism: Floats  # points: measured on val minus true accuracy of the last champion
    lock_box_optimism: Floats  # the same on the lock-box
    readings: Ints  # of the lock-box


def simulate(setting: Setting, rule: Rule, workspaces: int, seed: int) -> Result:
    """Returns what came of `workspaces` workspaces. Counts alone are drawn: won, lost, and what the champion gets."""
    from scipy.stats import binom

    draw = np.random.default_rng(seed)
    locked = round(setting.rows * setting.lock_box * UNDECIDED)
    rows = round(setting.rows * UNDECIDED) - locked
    true = np.full(workspaces, 0.5)  # the champion's probability on an undecided image
    right, right_locked = draw.binomial(rows, true), draw.binomial(locked, true)
    false, worse, readings = (np.zeros(workspaces, np.int64) for _ in range(3))
    found = np.full(workspaces, np.inf)
    for night in range(setting.nights):
        if setting.turnover:
            kept = round(rows * (1 - setting.turnover))
            right = draw.hypergeometric(right, rows - right, kept) + draw.binomial(rows - kept, true)
        better = setting.gain if night >= setting.start else 0.0
        challenger = 0.5 + (better + setting.noise * draw.standard_normal(workspaces)) / UNDECIDED
        won, lost = draw.binomial(rows - right, challenger), draw.binomial(right, 1 - challenger)
        promoted = binom.sf(won - 1, won + lost, 0.5) <= rule.level(night)
        rule.told(night, promoted)
        if locked and promoted.any():
            readings += promoted
            gained, dropped = (
                draw.binomial(locked - right_locked, challenger),
                draw.binomial(right_locked, 1 - challenger),
            )
            promoted &= _passes(setting.test, gained, dropped)
            right_locked = np.where(promoted, right_locked + gained - dropped, right_locked)
        false += promoted & (challenger <= true)
        worse += promoted & (challenger < true)
        right = np.where(promoted, right + won - lost, right)
        true = np.where(promoted, challenger, true)
        if night >= setting.start:
            found = np.where(promoted & np.isinf(found), night - setting.start + 1, found)
    optimism = 100 * UNDECIDED * (right / rows - true)
    of_locked = 100 * UNDECIDED * (right_locked / locked - true) if locked else np.zeros(workspaces)
    return Result(false, worse, found, optimism, of_locked, readings)


def _passes(test: str, won: Ints, lost: Ints) -> npt.NDArray[np.bool_]:
    from scipy.stats import binom

    passes: dict[str, Callable[[], Any]] = {
        "none": lambda: won == won,
        "no loss": lambda: binom.sf(lost - 1, won + lost, 0.5) > LEVEL,
        "not behind": lambda: won >= lost,
        "a gain": lambda: binom.sf(won - 1, won + lost, 0.5) <= LEVEL,
    }
    result: npt.NDArray[np.bool_] = passes[test]()
    return result


# --- the tables ---------------------------------------------------------------------------------------------------


def rules(nights: int, workspaces: int) -> dict[str, Callable[[], Rule]]:
    """Returns the rules of the tables: a new one for each simulation, since some have a state."""
    levels = {f"account, {each:g} a year": account_levels(each, nights) for each in (0.1, 0.5, 1.0, 2.0)}
    fixed = {"every night at 0.05": np.full(nights, LEVEL), **levels, "1/365 each night": np.full(nights, 1 / YEAR)}
    return {
        **{name: partial(Rule, each) for name, each in fixed.items()},
        "online fallback, 1 a year": partial(Fallback, np.full(nights, 1 / YEAR)),
        "LORD++ at 0.05": partial(LordPlusPlus, LEVEL, LEVEL / 2, nights, workspaces),
    }


def main(args: Args) -> None:
    """Prints a table of each kind for each number of rows."""
    for rows in args.rows:
        _print_rules(Setting(rows), args)
        _print_wear(Setting(rows), args)
        _print_lock_box(Setting(rows), args)


def _print_rules(equal: Setting, args: Args) -> None:
    lines = []
    for name, make in rules(equal.nights, args.years).items():

        def run(make: Callable[[], Rule] = make, **changes: Any) -> Result:
            return simulate(replace(equal, **changes), make(), args.years, args.seed)

        same, noisy = run(), run(noise=0.002)
        false = [same, run(turnover=1 / 90), run(turnover=1.0)]
        worse = run(turnover=1.0, gain=-0.005).worse
        power = [_power(run(gain=gain, start=START)) for gain in (0.005, 0.01)]
        cells = [*(f"{each.false.mean():.2f}" for each in false), f"{worse.mean():.3f}", *power]
        lines.append((name, *cells, _wear(same), _wear(noisy)))
    head = ("rule", "fixed", "90 days", "nightly", "0.5 worse", "0.5 better", "1 better", "wear", "wear, noisy models")
    title = f"{equal.rows:,} validation images, {args.years:,} years of {equal.nights} nights"
    _print(title, head, lines)


def _print_wear(equal: Setting, args: Args) -> None:
    lines = []
    for years in (1, 3, 5):
        long = replace(equal, nights=years * YEAR)
        chosen = rules(long.nights, args.years)
        results = [simulate(long, chosen[name](), args.years, args.seed) for name in ("every night at 0.05", DEFAULT)]
        lines.append((f"{years:g}", *map(_wear, results)))
    _print(f"{equal.rows:,} validation images, always the same", ("years", "every night at 0.05", DEFAULT), lines)


def _print_lock_box(equal: Setting, args: Args) -> None:
    levels, lines = account_levels(1.0, equal.nights), []
    for share, test in ((0.0, "none"), *((0.2, each) for each in LOCK_BOX_TESTS), (0.5, "no loss"), (0.5, "a gain")):

        def run(share: float = share, test: str = test, **changes: Any) -> Result:
            return simulate(replace(equal, lock_box=share, test=test, **changes), Rule(levels), args.years, args.seed)

        same, power = run(), [_power(run(gain=gain, start=START)) for gain in (0.005, 0.01)]
        lines.append(
            (
                f"{share:g}, {test}", f"{same.false.mean():.2f}", f"{run(turnover=1.0).false.mean():.2f}", *power,
                f"{same.optimism.mean():+.2f}", f"{same.lock_box_optimism.mean():+.2f}", f"{same.readings.mean():.2f}",
            )
        )  # fmt: skip
    head = (
        "lock-box, test",
        "fixed",
        "nightly",
        "0.5 better",
        "1 better",
        "wear of val",
        "of the lock-box",
        "readings",
    )
    _print(f"{equal.rows:,} validation images, those of the lock-box included; account, 1 a year", head, lines)


def _power(result: Result) -> str:
    """Returns the share that is found in the first night, in a month and in the rest of the year, and the median."""
    shares = ", ".join(f"{(result.found <= nights).mean():.2f}" for nights in (1, 30, YEAR))
    median = float(np.median(result.found))
    return f"{shares}; {median:.0f}" if np.isfinite(median) else f"{shares}; -"


def _wear(result: Result) -> str:
    return f"{result.optimism.mean():+.2f} ({np.quantile(result.optimism, 0.95):+.2f})"


def _print(title: str, head: tuple[str, ...], lines: list[tuple[str, ...]]) -> None:
    """Prints a table as Markdown, as docs/benchmarks.md has it."""
    text = [f"\n{title}\n", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    command.console.print("\n".join([*text, *(f"| {' | '.join(line)} |" for line in lines)]), soft_wrap=True)


if __name__ == "__main__":
    command.run(main, Args, __doc__)
