"""Tells others about a decision: a webhook, and an MLflow registry. Neither can change or fail a retraining run."""

import json
import logging
import urllib.request
from typing import Any

from pipeline.core.errors import RecipeError
from pipeline.retraining.mlflow_mirror import mirror

log = logging.getLogger(__name__)

_WEBHOOK_TIMEOUT_SECONDS = 10


def check_webhook(url: str) -> None:
    """Raises RecipeError if the URL isn't one of HTTP."""
    if not url.startswith(("http://", "https://")):
        raise RecipeError(f"webhook={url} must begin with http:// or https://")


def post_decision(url: str, decision: dict[str, Any]) -> None:
    """Posts the content of `decision.json`, without the recipe, to a webhook; logs a warning if it isn't accepted."""
    body = json.dumps({name: value for name, value in decision.items() if name != "recipe"}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        urllib.request.urlopen(request, timeout=_WEBHOOK_TIMEOUT_SECONDS).close()
    except OSError as error:
        log.warning("the webhook refused the decision (%s); the decision stands", error)


def update_mlflow(uri: str, registry: str) -> None:
    """Updates the mirror of a registry in MLflow; logs a warning if MLflow refuses.

    uri: of MLflow's tracking server. registry: URI of the model registry.
    """
    from mlflow.exceptions import MlflowException

    try:
        mirror(registry, uri)
    except MlflowException as error:
        log.warning("MLflow refused the update (%s); the decision stands", " ".join(str(error).split())[:200])
