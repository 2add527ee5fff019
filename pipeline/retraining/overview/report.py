"""At the end of each call: the page of the workspace is written. What fails is a warning."""

import logging

from pipeline.core.errors import PipelineError
from pipeline.retraining.overview.page import write_overview

log = logging.getLogger(__name__)


def report_nights(workspace: str) -> None:
    """Writes the page of all runs; logs a warning if that fails, which no decision depends on."""
    try:
        write_overview(workspace)
    except (PipelineError, OSError) as error:
        log.warning("the page of all runs: %s; the run goes on", error)
