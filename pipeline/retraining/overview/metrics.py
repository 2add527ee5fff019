"""Metrics of a workspace's retraining runs for Prometheus: a file for node-exporter, or a push to a Pushgateway.

A retraining run has ended long before Prometheus looks, and so has the Ray session that exported the metrics of its
training. So the newest values are left where something else shows them: in the folder of node-exporter's textfile
collector, or in a Pushgateway. All of them are made from the workspace, so `image-pipeline nights metrics` can do so on
any machine.
"""

import http.client
import os

from prometheus_client import CollectorRegistry, Gauge, push_to_gateway
from prometheus_client.exposition import write_to_textfile

from pipeline.core.errors import RecipeError
from pipeline.core.shares import wilson_interval
from pipeline.retraining.notices.webhook import http_url
from pipeline.retraining.overview.nights import Night
from pipeline.retraining.overview.overview import Overview

PREFIX = "image_pipeline_retraining_"
JOB = "image-pipeline-retraining"
_SUFFIX = ".prom"
_SCHEMES = ("http://", "https://")
_TIMEOUT_SECONDS = 10
_STATUSES = ("promoted", "candidate", "kept", "stopped", "unchanged", "failed")
_DECISIONS = ("promoted", "candidate", "kept", "stopped")
_DISTANCES = ("class_mix", "brightness", "features")


def check_target(target: str) -> None:
    """Raises RecipeError unless `target` is the URL of a Pushgateway, or a file NAME.prom in a folder that exists."""
    if target.startswith(_SCHEMES):
        http_url("metrics", target)
        return
    if not target.endswith(_SUFFIX):
        raise RecipeError(
            f"metrics={target}: node-exporter reads files NAME{_SUFFIX} alone; give one, or the URL of a Pushgateway"
        )
    if not os.path.isdir(os.path.dirname(os.path.abspath(target))):
        raise RecipeError(f"metrics={target}: no such folder; give that of node-exporter's textfile collector")


def write_metrics(target: str, overview: Overview) -> None:
    """Writes the metrics to a file, as a whole, or pushes them to a Pushgateway. Raises OSError where that fails.

    target: as `check_target` allows.
    """
    metrics = metrics_of(overview)
    if target.startswith(_SCHEMES):
        group, url = {"workspace": overview.name}, http_url("metrics", target)
        try:
            push_to_gateway(url, JOB, metrics, group, timeout=_TIMEOUT_SECONDS)
        except http.client.HTTPException as error:
            raise OSError(f"no Pushgateway answers there ({error!r})") from error
    else:
        write_to_textfile(target, metrics)


class _Gauges:
    """Gauges with the label `workspace`; a value of None leaves a gauge out."""

    def __init__(self, workspace: str) -> None:
        self.collectors = CollectorRegistry()
        self._workspace = workspace
        self._gauges: dict[str, Gauge] = {}

    def set(self, name: str, meaning: str, value: float | None, **labels: str) -> None:
        if value is None:
            return
        if name not in self._gauges:
            names = ("workspace", *labels)
            self._gauges[name] = Gauge(PREFIX + name, meaning, names, registry=self.collectors)
        self._gauges[name].labels(self._workspace, *labels.values()).set(value)


def metrics_of(overview: Overview) -> CollectorRegistry:
    """Returns the metrics, all of them gauges whose names begin with PREFIX."""
    gauges = _Gauges(overview.name)
    _add_status(gauges, overview)
    for name in _DECISIONS:
        count = sum(each.status == name for each in overview.nights)
        gauges.set("runs", "Finished runs, by decision", count, decision=name)
    if overview.nights:
        _add_night(gauges, overview.nights[-1])
        _add_data(gauges, overview.nights[-1])
    if overview.moves:
        moved = overview.moves[-1].time
        gauges.set("champion_timestamp_seconds", "When the champion became live, in seconds since 1970", moved)
    if overview.live:
        low, high = wilson_interval(*overview.live)
        share = overview.live[0] / overview.live[1]
        gauges.set("champion_top1", "Top-1 of the champion, on the validation images of the newest run", share)
        gauges.set("champion_top1_low", "Lower end of its 95 % interval", low)
        gauges.set("champion_top1_high", "Upper end of its 95 % interval", high)
    return gauges.collectors


def _add_status(gauges: _Gauges, overview: Overview) -> None:
    gauges.set("undelivered_messages", "Messages that no webhook has accepted yet", overview.waiting)
    gauges.set("given_up_messages", "Messages that no webhook wants, and no run sends again", overview.given_up)
    status = overview.status
    if status is None:
        return
    gauges.set("first_run_timestamp_seconds", "When the first call began, in seconds since 1970", status.first_run)
    if not status.status:  # the first call is at work, or was killed
        return
    gauges.set("last_run_timestamp_seconds", "When the last call ended, in seconds since 1970", status.last_run)
    meaning = "When the last call that didn't fail ended, in seconds since 1970"
    gauges.set("last_success_timestamp_seconds", meaning, status.last_success)
    for name in _STATUSES:
        gauges.set("last_run_status", "1 for how the last call ended", float(status.status == name), status=name)


def _add_night(gauges: _Gauges, night: Night) -> None:
    gauges.set("decision_timestamp_seconds", "When the newest run was decided, in seconds since 1970", night.finished)
    for name in _DECISIONS:
        gauges.set("last_decision", "1 for the newest decision", float(night.status == name), decision=name)
    for stage, seconds in night.seconds.items():
        gauges.set("stage_seconds", "What each stage of the newest run took", seconds, stage=stage)
    expected = ((night.plan or {}).get("estimate") or {}).get("seconds", {})
    for stage, seconds in expected.items():
        gauges.set("planned_stage_seconds", "What each stage was expected to take", seconds, stage=stage)
    gauges.set("cost", "What the newest run cost, in the currency of --cost-per-hour", night.cost)
    gain = night.gain or {}
    gauges.set("gain", "Gain of top-1, challenger minus champion", gain.get("gain"))
    gauges.set("gain_low", "Lower end of the gain's 95 % interval", gain.get("low"))
    gauges.set("gain_high", "Upper end of the gain's 95 % interval", gain.get("high"))
    account = night.sequential or {}
    gauges.set("level", "Level of the newest promotion test", account.get("level"))
    gauges.set("false_promotions_limit", "False promotions a year, at most", account.get("per_year"))
    meaning = "Part of the limit that the levels of the last 365 days have spent"
    gauges.set("false_promotions_spent", meaning, account.get("spent"))


def _add_data(gauges: _Gauges, night: Night) -> None:
    data, drift = night.data or {}, night.drift or {}
    gauges.set("quarantined_share", "Share of the source's files that ingest left out", data.get("quarantined_share"))
    for split, rows in data.get("rows", {}).items():
        gauges.set("rows", "Images of the newest data set", rows, split=split)
    thresholds = drift.get("thresholds", {})
    for name in _DISTANCES:
        gauges.set("drift", "Distance from the champion's data set", drift.get(name), distance=name)
        gauges.set("drift_threshold", "Distance above which drift is reported", thresholds.get(name), distance=name)
