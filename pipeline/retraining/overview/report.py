"""At the end of each call: the workspace's page and metrics are written. What fails is a warning."""

import logging

from pipeline.core.errors import PipelineError
from pipeline.retraining.overview.metrics import write_metrics
from pipeline.retraining.overview.overview import read_overview
from pipeline.retraining.overview.page import write_page

log = logging.getLogger(__name__)


def report_nights(workspace: str, metrics: str | None = None) -> None:
    """Writes page and metrics of all runs; logs a warning for what fails, since no decision depends on it.

    metrics: a file or the URL of a Pushgateway, as `metrics.check_target` allows; None for none.
    """
    what = "the page of all runs"
    try:
        overview = read_overview(workspace)
        write_page(overview)
        if metrics is not None:
            what = f"metrics={metrics}"
            write_metrics(metrics, overview)
    except (PipelineError, OSError) as error:
        log.warning("%s: %s; the run goes on", what, error)
