"""Warnings of a run that can't be good, each with its remedy: by its recipe and its data, before it is trained."""

from pipeline.config.recipe import Recipe
from pipeline.core.shares import counted
from pipeline.training.automatic.facts import DataFacts
from pipeline.training.automatic.recipes import FINE_TUNED, PHOTOS, SMALL

FEW_STEPS = 100
FEW_IMAGES = 10  # of a class
FEW_VAL_ROWS = 100
_SHRUNK = 3  # times: images lose detail that people need to tell classes apart
_SMALL_PX = 48  # a recipe for small images
_IMBALANCE = 20  # times as many images in the largest class as in the smallest


def run_warnings(recipe: Recipe, facts: DataFacts) -> list[str]:
    """Returns a line for each reason why a run with this recipe on these data can't be good, with the remedy."""
    found = (_shrunk, _large_batch, _few_steps, _small_classes, _imbalanced, _few_val_rows)
    return [line for check in found if (line := check(recipe, facts))]


def steps_of(recipe: Recipe, rows: int) -> int:
    """Returns the steps of a run, counting passes over images as epochs: at most so many with a time budget."""
    return recipe.epochs * -(-max(1, round(recipe.sampling.share * rows)) // recipe.global_batch_size)


def _shrunk(recipe: Recipe, facts: DataFacts) -> str | None:
    size = recipe.image_size_px
    if size > _SMALL_PX or facts.side_px < _SHRUNK * size:
        return None
    is_chosen = recipe.name in (PHOTOS, FINE_TUNED, SMALL)  # its size is what was asked for
    remedy = "take more, such as --set image_size_px=128" if is_chosen else "leave --recipe away"
    return (
        f"recipe {recipe.name} shrinks the images, {facts.width_px}x{facts.height_px} px in the median, to {size} px, "
        f"where little of a photograph is left; {remedy}, or give a recipe for photographs (imagenette-20)"
    )


def _large_batch(recipe: Recipe, facts: DataFacts) -> str | None:
    if recipe.global_batch_size <= facts.train_rows:
        return None
    return (
        f"global_batch_size={recipe.global_batch_size} is more than the {facts.train_rows:,} training images, so that "
        f"an epoch is one step; use --global-batch-size {_sensible_batch(facts.train_rows)}"
    )


def _few_steps(recipe: Recipe, facts: DataFacts) -> str | None:
    steps = steps_of(recipe, facts.train_rows)
    if steps >= FEW_STEPS or recipe.fit_head == "only":
        return None
    batch = min(recipe.global_batch_size, _sensible_batch(facts.train_rows))
    epochs = -(-FEW_STEPS // -(-facts.train_rows // batch))
    smaller = f"--global-batch-size {batch} " if batch < recipe.global_batch_size else ""
    are = "step is" if steps == 1 else "steps are"
    return f"{steps} {are} few to learn from; use {smaller}--epochs {max(epochs, recipe.epochs)} or more"


def _small_classes(recipe: Recipe, facts: DataFacts) -> str | None:
    del recipe
    small = [(rows, name) for rows, name in zip(facts.rows_per_class, facts.classes, strict=True) if rows < FEW_IMAGES]
    if not small:
        return None
    names = ", ".join(f"{name} ({rows})" for rows, name in sorted(small)[:5])
    more = f" and {len(small) - 5} more" if len(small) > 5 else ""
    return (
        f"{len(small)} of {len(facts.classes)} classes {'has' if len(small) == 1 else 'have'} fewer than {FEW_IMAGES} "
        f"training images: {names}{more}; "
        f"add images, or leave {'this class' if len(small) == 1 else 'these classes'} out"
    )


def _imbalanced(recipe: Recipe, facts: DataFacts) -> str | None:
    if recipe.sampling.is_active:
        return None
    rows = sorted(zip(facts.rows_per_class, facts.classes, strict=True))
    (least, rare), (most, common) = rows[0], rows[-1]
    if most < _IMBALANCE * max(1, least):
        return None
    return (
        f"class {common} has {counted(most, 'training image')} and {rare} {least:,}: a model that always says "
        f"{common} is right for {most / sum(facts.rows_per_class):.0%} of them; look at the recall of each "
        "class, show rare ones more often (--set sampling.class_balance=0.5), or add images"
    )


def _few_val_rows(recipe: Recipe, facts: DataFacts) -> str | None:
    del recipe
    rows = facts.val_rows
    if not 0 < rows < FEW_VAL_ROWS:
        return None
    points = 98 / rows**0.5  # half of the 95 % interval where the share is one half, its widest
    return (
        f"top-1 will rest on {counted(rows, 'validation image')} alone: it is uncertain by up to {points:.0f} points "
        "either way; add validation images, or hold more out with --val-share"
    )


def _sensible_batch(rows: int) -> int:
    return next((size for size in (256, 128, 64, 32, 16) if size * 12 <= rows), 8)
