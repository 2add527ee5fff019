"""Warm starts in proportion to what is new: epochs of the new rows, and of a stated share of old ones (replay).

A run that starts from the champion's weights has learned the old rows already. With a replay share of s, each epoch
holds every new row once and old ones as s of the whole, so its length grows with the new rows alone. Old rows keep the
model from forgetting (experience replay; Rolnick et al., arXiv 1811.11682). The order is the loader's own, by
`sampling.weights` and `sampling.share`: it depends on nothing but rows, weights and seed, as every order.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv

from pipeline.config.recipe import Recipe
from pipeline.core.errors import RecipeError
from pipeline.dataset import manifest
from pipeline.models.class_lists.mapping import ClassMap
from pipeline.retraining.decision.data_changes import new_rows
from pipeline.storage import files

TABLE_NAME = "replay.csv"

Floats = npt.NDArray[np.float64]


def check_replay(share: float | None, from_champion: bool) -> None:
    """Raises RecipeError unless `share` is None, or in [0, 1) with a run that starts from the champion."""
    if share is None:
        return
    if not 0 <= share < 1:
        raise RecipeError(f"replay-share={share:g} must lie in [0, 1): the share of old images in an epoch")
    if not from_champion:
        raise RecipeError("replay-share needs --from-champion: other weights know no old images")


def replay_weights(is_new: npt.NDArray[np.bool_], share: float, least: int) -> tuple[Floats, int] | None:
    """Returns the weight of each row, float64 [N], and the number of rows of an epoch.

    is_new: bool [N]. share: of old rows in an epoch, in [0, 1). least: rows that an epoch has at least, such as those
    of a batch; old rows fill it. The weight of a new row is 1, its expected count in an epoch, that of an old one is
    at most 1. None if no row is new, or if an epoch would hold all rows anyway.
    """
    rows, new = len(is_new), int(is_new.sum())
    length = max(round(new / (1 - share)), least)
    if not new or length >= rows:
        return None
    return np.where(is_new, 1.0, (length - new) / (rows - new)), length


def with_replay(
    recipe: Recipe, dataset: str, champions: str, share: float, folder: str, class_map: ClassMap | None = None
) -> tuple[Recipe, dict[str, Any]]:
    """Returns the recipe that trains on new rows and a share of old ones, and `replay` of `decision.json`.

    dataset: URI of the data set. champions: URI of the one that the champion was trained on: the rows of train that are
    not in its train split, of the same class and bytes, are new. folder: URI where the table of weights is written, the
    same bytes each time. class_map: the champion's classes in the data set; a class with another name isn't a new one,
    None if none has another name. The recipe is `recipe` itself if no row is new, or if all rows are needed.

    Raises RecipeError if the recipe samples already.
    """
    if recipe.sampling.is_active:
        raise RecipeError("replay-share and a recipe with sampling both say what an epoch holds; leave one of them out")
    name_since = class_map.name_since if class_map else str
    keys, is_new = new_rows(dataset, manifest.load(dataset), champions, name_since)
    found = replay_weights(is_new, share, recipe.global_batch_size)
    details = {"share": share, "new_rows": int(is_new.sum()), "epoch_rows": len(is_new)}
    if found is None:
        return recipe, details
    weights, length = found
    place = files.join(folder, TABLE_NAME)
    out = pa.BufferOutputStream()
    pyarrow.csv.write_csv(pa.table({"key": keys, "weights": weights}), out)
    files.write_bytes(place, out.getvalue())
    sampling = replace(recipe.sampling, weights=place, share=length / len(is_new))
    return replace(recipe, sampling=sampling), {**details, "epoch_rows": length}
