"""The files of a repository of models: weights, configuration, metrics and a model card, from a finished run."""

import json
from typing import Any

from pipeline.config.recipe import Recipe
from pipeline.config.recipe_json import recipe_to_json
from pipeline.core.errors import CheckpointError
from pipeline.evaluation.output_files import METRICS_NAME, read_metrics
from pipeline.evaluation.pages.model_card import CARD_NAME
from pipeline.models import checkpoint
from pipeline.models.load import TrainedModel, find_model
from pipeline.reporting.charts import render_page
from pipeline.storage import files

CONFIG_NAME, README_NAME, EVALUATION = "config.json", "README.md", "evaluation"
_RESULT_NAME = "result.json"
_SMALL_PX = 64  # and below, torchvision's networks have another first layer here
_TORCHVISION = ("resnet", "densenet", "vgg", "alexnet")


def model_files(
    run: str, repo: str = "", licence: str | None = None, evaluation: str | None = None
) -> dict[str, bytes]:
    """Returns {name: content} of a repository of models.

    run: URI of a finished run. repo: OWNER/NAME, for the card. licence: its SPDX name, for the card's metadata.
    evaluation: URI of an evaluation's folder, whose metrics and card are added. Written to a folder, the files can be
    loaded as the run can. Raises CheckpointError if the run isn't finished, or the evaluation is of another model.
    """
    run = run.rstrip("/")
    if checkpoint.is_checkpoint(run):
        raise CheckpointError(f"checkpoint={run}: a checkpoint has no metrics; give the folder of the finished run")
    model = find_model(run)
    place = files.join(run, _RESULT_NAME)
    if not files.exists(place):
        raise CheckpointError(f"checkpoint={run}: has no {_RESULT_NAME} yet; the training command writes it at its end")
    result = files.read_json(place)
    found = {
        README_NAME: card(model, result, repo, licence).encode(),
        CONFIG_NAME: _json(configuration(model)),
        checkpoint.MODEL_NAME: files.read_bytes(files.join(run, checkpoint.MODEL_NAME)),
        # What `load_model` and every command that takes a run read.
        checkpoint.OUTPUT_NAME: _json(
            {
                "recipe": recipe_to_json(model.recipe),
                "classes": list(model.classes),
                "dataset_digest": model.dataset_digest,
                "hold_out": model.hold_out,
            }
        ),
        METRICS_NAME: _json({name: result[name] for name in ("val", "val_without_leaked", "evaluated", "evaluations")}),
    }
    return found | (_evaluation_files(model, evaluation) if evaluation else {})


def _evaluation_files(model: TrainedModel, evaluation: str) -> dict[str, bytes]:
    metrics = read_metrics(evaluation)
    if metrics["certificate"]["checkpoint_sha256"] != model.sha256:
        raise CheckpointError(f"evaluation={evaluation}: is of another model than {model.uri}; evaluate this one")
    names = (METRICS_NAME, CARD_NAME)
    return {f"{EVALUATION}/{name}": files.read_bytes(files.join(evaluation, name)) for name in names}


def configuration(model: TrainedModel) -> dict[str, Any]:
    """Returns the content of `config.json`: network, classes, how images are prepared, and the whole recipe."""
    recipe = model.recipe
    size_px = recipe.evaluate_size_px or recipe.image_size_px
    return {
        "architecture": recipe.model,
        "num_classes": len(model.classes),
        "id2label": {str(index): name for index, name in enumerate(model.classes)},
        "label2id": {name: index for index, name in enumerate(model.classes)},
        "preprocessing": {
            "resize_shorter_side_px": recipe.evaluate_resize_px,
            "crop_px": size_px,
            "mean": list(recipe.pixel_mean),
            "std": list(recipe.pixel_std),
        },
        "weights_sha256": model.sha256,
        "dataset_digest": model.dataset_digest,
        "recipe": recipe_to_json(recipe),
    }


def card(model: TrainedModel, result: dict[str, Any], repo: str = "", licence: str | None = None) -> str:
    """Returns the model card, Markdown with the metadata that the Hugging Face Hub reads. result: of `result.json`."""
    val, recipe = result["val"], model.recipe
    views = "" if recipe.test_views == "none" else f", test views: {recipe.test_views}"
    metrics = [
        (f"top-1{views}", val["correct"], val["rows"]),
        (f"top-5{views}", round(val["top5"] * val["rows"]), val["rows"]),
    ]
    leaked = result["val_without_leaked"]
    if leaked:
        metrics.append(("top-1 without images that have a duplicate in train", leaked["correct"], leaked["rows"]))
    held_out = result["evaluated"]["held_out"]
    return render_page(
        "hub_card.md",
        name=repo.rpartition("/")[2] or recipe.name,
        repo=repo,
        licence=licence,
        recipe=recipe,
        classes=model.classes,
        dataset=result["dataset"],
        split=result["evaluated"]["split"],
        evaluated="images held out of train" if held_out else "validation images",
        val=val,
        metrics=[
            {"name": name, "correct": correct, "rows": rows, "value": correct / rows} for name, correct, rows in metrics
        ],
        plain=plain_pytorch(recipe, len(model.classes)),
        resize_px=recipe.evaluate_resize_px,
        size_px=recipe.evaluate_size_px or recipe.image_size_px,
        epochs=result["epochs"],
        seed=result["seed"],
        chosen="early_stop" in result,
    )


def plain_pytorch(recipe: Recipe, num_classes: int) -> str:
    """Returns the lines that load the weights without this package; empty where the network is this package's own."""
    if recipe.blur_pool:
        return ""
    if recipe.model.startswith("timm:"):
        made = f'timm.create_model("{recipe.model.removeprefix("timm:")}", num_classes={num_classes})'
        library = "timm"
    elif recipe.model.startswith(_TORCHVISION) and recipe.image_size_px > _SMALL_PX:
        made = f'torchvision.models.get_model("{recipe.model}", num_classes={num_classes})'
        library = "torchvision"
    else:
        return ""
    return "\n".join(
        [
            f"import {library}",
            "from safetensors.torch import load_file",
            "",
            f"net = {made}",
            f'net.load_state_dict(load_file("{checkpoint.MODEL_NAME}"))',
            "net.eval()",
        ]
    )


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=1).encode() + b"\n"
