"""Mirrors a model registry in MLflow's registry. One way only: this project's registry decides what is live."""

from typing import Any

from pipeline.core.variables import environment_variables
from pipeline.retraining import registry
from pipeline.training.trackers.mlflow import PATIENCE, check_mlflow

MODEL_NAME = "image-pipeline"
_ID_TAG = "image_pipeline.version"


def mirror(place: str, uri: str) -> int:
    """Adds missing versions to MLflow, sets its aliases to ours, and returns the number of versions that were added.

    place: URI of the registry. uri: of MLflow's server. All versions belong to the MLflow model MODEL_NAME. An MLflow
    version refers to the URI of ours, with ID, top-1, rows and data set as tags; no weights are copied.

    Raises RecipeError if MLflow isn't installed, and MLflow's own exceptions.
    """
    check_mlflow(uri)
    with environment_variables(PATIENCE):
        from mlflow import MlflowClient

        client = MlflowClient(uri)
        if not client.search_registered_models(f"name='{MODEL_NAME}'"):
            client.create_registered_model(MODEL_NAME)
        numbers = _numbers(client)
        missing = [version for version in registry.versions(place) if version.id not in numbers]
        for version in missing:
            # A URI's query holds options of this machine's access, such as an endpoint.
            source = registry.version_uri(place, version.id).split("?")[0]
            numbers[version.id] = client.create_model_version(MODEL_NAME, source, tags=_tags(version)).version
        for alias, version_id in registry.aliases(place).items():
            client.set_registered_model_alias(MODEL_NAME, alias, numbers[version_id])
    return len(missing)


def _tags(version: registry.Version) -> dict[str, str]:
    return {
        _ID_TAG: version.id,
        "recipe": version.recipe,
        "top1": str(version.top1),
        "rows": str(version.rows),
        "dataset_digest": version.dataset_digest,
        "certificate": version.certificate,
        "parent": version.parent,
    }


def _numbers(client: Any) -> dict[str, str]:
    """Returns {our ID: MLflow's version number} of all versions, read page by page."""
    numbers: dict[str, str] = {}
    token = None
    while True:
        page = client.search_model_versions(f"name='{MODEL_NAME}'", page_token=token)
        numbers |= {each.tags[_ID_TAG]: each.version for each in page if _ID_TAG in each.tags}
        token = page.token
        if not token:
            return numbers
