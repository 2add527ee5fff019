"""Chooses recipe, image size, batch size, epochs and first weights for a data set and a machine, and says why.

The rules, first that fits: scikit-learn's digits and CIFAR-10 keep their recipes; small images are trained at their
size; photographs start from pretrained weights where there are some; otherwise a network of a size that the machine
can train is trained from scratch. On CPUs training aims at five minutes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from pipeline.config.presets import recipes
from pipeline.config.recipe import Recipe
from pipeline.core.shares import counted
from pipeline.models.pretrained.at_hand import OWN_MODELS, fixed_size_px
from pipeline.training.automatic import recipes as own
from pipeline.training.automatic.facts import DataFacts
from pipeline.training.automatic.machine import CPU_SECONDS, Machine
from pipeline.training.automatic.warn import FEW_STEPS

_SMALL_PX = 40  # images up to here are trained at 32 px
_MEDIUM_PX = 80  # up to here at 64 px
_MANY_ROWS = 10_000  # of small images: enough for the recipe of CIFAR-10
_FEW_OF_CLASS = 100  # images of a class, up to which a last layer alone is worth a try
_IMAGENET_ROWS = 200_000  # from here on pretrained weights gain little, and a GPU is needed anyhow
_STEPS = {own.FINE_TUNED: 240, own.PHOTOS: 1000, own.SMALL: 400}  # that a small set is trained for
_LEAST_EPOCHS = {own.FINE_TUNED: 4, own.PHOTOS: 20, own.SMALL: 16}  # of a larger set, if there is time
_MOST_EPOCHS = 100
_HIGHEST_RATE = 10 / 3  # times the learning rate of a fine-tuning, where it has few steps: 1e-3
_VALIDATION = 1.25  # its cost, and that of checkpoints, relative to training alone

Operations = Callable[[Recipe, int], float]
"""(recipe, number of classes) -> operations of a forward and backward pass over one image."""


@dataclass(frozen=True)
class Choice:
    """A recipe that was chosen, and what to tell people about it."""

    recipe: Recipe
    """The recipe."""
    pretrained: str | None
    """Weights to start from, as `--pretrained` takes them; None for none."""
    reasons: tuple[str, ...]
    """Lines that say what was chosen and why."""


def choose_recipe(
    facts: DataFacts,
    machine: Machine,
    weights: Callable[[str | None], tuple[str | None, str]],
    asked: Mapping[str, Any] | None = None,
    operations: Operations | None = None,
) -> Choice:
    """Returns the choice for a data set on a machine.

    weights: called with the network that is asked for, or None; returns a network whose pretrained weights are to be
    used, or None, and a line about them. asked: fields of the recipe that are given and stay as given; "pretrained",
    whether published weights are asked for by name. operations: for tests; the default counts them.
    """
    asked = asked or {}
    if not asked.get("model") and not asked.get("pretrained") and (known := _known(facts)):
        return known
    recipe, why, about, pretrained = _of_kind(facts, machine, weights, asked)
    recipe = _with(recipe, asked, ("model", "image_size_px"))
    recipe, amount = _with_amount(recipe, facts, machine, asked, operations or _operations)
    first = f"recipe {recipe.name}: {recipe.model} at {recipe.image_size_px} px, {why}"
    lines = (first, *((f"weights: {about}",) if about else ()), *_hints(recipe, facts, asked), *amount)
    return Choice(recipe, "timm" if pretrained else None, lines)


def _hints(recipe: Recipe, facts: DataFacts, asked: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns a line about the last layer alone, where there are few images of a class and nobody has asked for it."""
    few = facts.train_rows <= _FEW_OF_CLASS * len(facts.classes)
    if recipe.name != own.FINE_TUNED or asked.get("fit_head") or not few:
        return ()
    return ("few images: --set fit_head=only fits the last layer alone, in seconds, often as well",)


def _known(facts: DataFacts) -> Choice | None:
    """Returns the choice for a data set that has a recipe of its own."""
    name = "digits" if facts.is_digits else "cifar10" if facts.is_cifar10 else None
    return (name and Choice(recipes[name], None, (f"recipe {name}: made for these images",))) or None


def _of_kind(
    facts: DataFacts,
    machine: Machine,
    weights: Callable[[str | None], tuple[str | None, str]],
    asked: Mapping[str, Any],
) -> tuple[Recipe, str, str, bool]:
    """Returns (recipe for images of this kind, why, about weights, whether it starts from pretrained weights)."""
    median = f"the images have a median of {facts.width_px}x{facts.height_px}"
    side, on_gpu, from_scratch = facts.side_px, machine.gpus > 0, not asked.get("pretrained")
    if side <= _SMALL_PX and from_scratch:
        if facts.train_rows >= _MANY_ROWS:
            return own.many_small_images(facts, on_gpu), f"because {median} and are many", "", False
        return own.small_images(32, facts), f"because {median}", "", False
    if side <= _MEDIUM_PX and facts.train_rows >= _MANY_ROWS and from_scratch:
        return own.small_images(64, facts, "resnet18" if on_gpu else "fast-resnet"), f"because {median}", "", False
    size = asked.get("image_size_px") or _photo_size(side, on_gpu)
    if facts.train_rows >= _IMAGENET_ROWS and from_scratch:
        return replace(recipes["resnet50-16" if on_gpu else "resnet18-16"]), _scale(facts, on_gpu), "", False
    wanted = asked.get("model")
    model, about = weights(wanted)
    size = asked.get("image_size_px") or fixed_size_px(model or wanted) or size
    if model:
        return own.fine_tuned(model, size, facts, on_gpu), f"because {median}", about, True
    if wanted not in OWN_MODELS and (wanted or on_gpu):
        return own.photos(wanted or "resnet18", size, facts), f"because {median}", about, False
    small = asked.get("image_size_px") or 64
    return own.photos_on_cpu(small, facts), f"what learns from scratch on a CPU; {median}", about, False


def _scale(facts: DataFacts, on_gpu: bool) -> str:
    if on_gpu:
        return f"because {facts.train_rows:,} images are enough to train from scratch"
    return f"the fastest for {facts.train_rows:,} images, which need days on CPUs; give --workers and GPUs"


def _photo_size(side_px: int, on_gpu: bool) -> int:
    """Returns the side to train photographs at: what they have, up to 128 px on a CPU and 224 px on a GPU."""
    most = 224 if on_gpu else 128
    return next((size for size in (224, 192, 160, 128) if size <= min(most, side_px)), 96 if side_px >= 96 else 128)


def _with(recipe: Recipe, asked: Mapping[str, Any], names: tuple[str, ...]) -> Recipe:
    """Returns the recipe with those of its fields that are asked for."""
    given = {name: asked[name] for name in names if asked.get(name)}
    if "image_size_px" in given and given["image_size_px"] != recipe.image_size_px:
        given["evaluate_resize_px"] = round(recipe.evaluate_resize_px * given["image_size_px"] / recipe.image_size_px)
    return replace(recipe, **given) if given else recipe


def _with_amount(
    recipe: Recipe, facts: DataFacts, machine: Machine, asked: Mapping[str, Any], operations: Operations
) -> tuple[Recipe, tuple[str, ...]]:
    """Returns the recipe with batch size and epochs for so many images on this machine, and a line about each."""
    rows = facts.train_rows
    batch = asked.get("global_batch_size") or _batch(recipe, rows, machine)
    recipe = _scaled_batch(recipe, batch)
    lines = [f"batch {batch} because {rows:,} images" if batch < 64 else f"batch {batch}"]
    if asked.get("fit_head") == "only":
        return recipe, (f"the last layer alone is fitted: each of {counted(rows, 'image')} is computed once",)
    steps = -(-rows // batch)
    rate = 0.0 if machine.gpus else machine.images_per_second(recipe.model, operations(recipe, len(facts.classes)))
    if recipe.fit_seconds:
        lines.append(f"up to {counted(recipe.epochs, 'epoch')} in {recipe.fit_seconds:g} s")
    else:
        epochs, why = asked.get("epochs") or 0, "as asked"
        if not epochs:
            epochs, why = _epochs(recipe, rows, steps, rate, machine)
        recipe = replace(recipe, epochs=epochs, warmup_epochs=min(recipe.warmup_epochs, epochs / 4))
        rate_before, recipe = recipe.learning_rate, _with_rate(recipe, epochs * steps)
        few = recipe.learning_rate != rate_before
        about = f", learning rate {recipe.learning_rate:.1g} because they are few" if few else ""
        lines.append(f"{counted(epochs, 'epoch')} {why} ({counted(epochs * steps, 'step')}{about})")
        if rate:
            lines.append(f"about {_minutes(epochs * rows * _VALIDATION / rate)} on {machine}")
    return recipe, (", ".join(lines),)


def _batch(recipe: Recipe, rows: int, machine: Machine) -> int:
    """Returns the images of a step: the recipe's, but so few that an epoch has a dozen steps."""
    if recipe.global_batch_size > 256:  # made for many images
        return recipe.global_batch_size
    most = 64 if machine.gpus or recipe.name != own.FINE_TUNED else 32
    return next((size for size in (128, 64, 32, 16) if size <= most and size * 12 <= rows), min(rows, 8))


def _scaled_batch(recipe: Recipe, batch: int) -> Recipe:
    """Returns the recipe with another batch size; for SGD with momentum the learning rate changes with it."""
    share = batch / recipe.global_batch_size
    return replace(
        recipe,
        global_batch_size=batch,
        learning_rate=recipe.learning_rate * (share if recipe.optimizer in ("momentum", "nesterov") else 1),
        accumulate_steps=min(recipe.accumulate_steps, batch),
    )


def _with_rate(recipe: Recipe, steps: int) -> Recipe:
    """Returns the recipe with the learning rate for a fine-tuning of so many steps: fewer steps are larger ones.

    A step of Adam is about as long as its rate, whatever the gradient, so that few steps move the weights too little.
    The square root lies between no change and equal paths; measured in docs/log.md, "Fine-tuning and small sets".
    """
    if recipe.name != own.FINE_TUNED:
        return recipe
    factor = min(_HIGHEST_RATE, max(1.0, (_STEPS[own.FINE_TUNED] / steps) ** 0.5))
    return replace(recipe, learning_rate=recipe.learning_rate * factor)


def _epochs(recipe: Recipe, rows: int, steps: int, rate: float, machine: Machine) -> tuple[int, str]:
    """Returns the number of epochs and why: enough steps, and on CPUs no more than there is time for."""
    if recipe.name not in _STEPS:
        return recipe.epochs, "as the recipe has"
    target = _STEPS[recipe.name]
    wanted = max(-(-target // steps), _LEAST_EPOCHS[recipe.name])
    if machine.gpus:
        wanted *= 2
    wanted = min(wanted, _MOST_EPOCHS)
    if rate:
        in_time = int(CPU_SECONDS * rate / (rows * _VALIDATION))
        least = max(1, -(-FEW_STEPS // steps))
        if in_time < wanted:
            return max(
                in_time, least
            ), f"for about {_minutes(CPU_SECONDS)}" if in_time >= least else "to reach 100 steps"
    return wanted, f"to reach {target} steps" if wanted * steps < 2 * target else "for a set of this size"


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.0f} h"


def _operations(recipe: Recipe, num_classes: int) -> float:
    import torch

    from pipeline.models.factory import recipe_model
    from pipeline.models.flops import operations_per_image

    with torch.device("meta"):
        net = recipe_model(recipe, num_classes)
    return operations_per_image(net, recipe.image_size_px)


def differing_fields(recipe: Recipe, other: Recipe) -> dict[str, Any]:
    """Returns the fields of `other` that differ from `recipe`'s: what somebody has asked for."""
    return {
        each.name: getattr(other, each.name)
        for each in fields(Recipe)
        if getattr(other, each.name) != getattr(recipe, each.name)
    }
