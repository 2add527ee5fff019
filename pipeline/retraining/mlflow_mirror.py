"""A registry's versions and aliases, shown in an MLflow registry too. One way only: what is live, ours alone says."""

import os
from typing import Any

from pipeline.retraining import registry
from pipeline.training.trackers.mlflow import PATIENCE, check_mlflow

MODEL_NAME = "image-pipeline"
_ID_TAG = "image_pipeline.version"


def mirror(place: str, uri: str) -> int:
    """Adds the versions of the registry at `place` that the MLflow registry at `uri` lacks, as the model MODEL_NAME,
    and sets its aliases to ours. Returns how many versions it lacked.

    A version is named by where it lies, with its ID, top-1, rows and data set as tags; no weights are copied.
    Raises RecipeError where MLflow isn't installed, and MLflow's own exceptions.
    """
    check_mlflow(uri)
    os.environ.update(PATIENCE)
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    if not client.search_registered_models(f"name='{MODEL_NAME}'"):
        client.create_registered_model(MODEL_NAME)
    known = _known(client)
    missing = [version for version in registry.versions(place) if version.id not in known]
    for version in missing:
        tags = {
            _ID_TAG: version.id,
            "recipe": version.recipe,
            "top1": str(version.top1),
            "rows": str(version.rows),
            "dataset_digest": version.dataset_digest,
            "certificate": version.certificate,
            "parent": version.parent,
        }
        source = registry.version_uri(place, version.id).split("?")[0]
        known[version.id] = client.create_model_version(MODEL_NAME, source, tags=tags).version
    for alias, version_id in registry.aliases(place).items():
        client.set_registered_model_alias(MODEL_NAME, alias, known[version_id])
    return len(missing)


def _known(client: Any) -> dict[str, str]:
    """Returns {our ID: MLflow's number} of all versions, page by page."""
    known: dict[str, str] = {}
    token = None
    while True:
        page = client.search_model_versions(f"name='{MODEL_NAME}'", page_token=token)
        known |= {each.tags[_ID_TAG]: each.version for each in page if _ID_TAG in each.tags}
        token = page.token
        if not token:
            return known
