"""Metrics of retraining runs, by the parsers of Prometheus, and the alerts that rest on them."""

import http.server
import json
import re
import shutil
import socketserver
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.core.errors import RecipeError
from pipeline.retraining.alias_file import Move
from pipeline.retraining.notices.status_file import Status
from pipeline.retraining.overview import report
from pipeline.retraining.overview.metrics import PREFIX, check_target, metrics_of, write_metrics
from pipeline.retraining.overview.overview import Overview
from pipeline.storage.local_s3 import await_answer, free_ports
from tests.support.trained.overview import many_nights

MONITORING = Path(__file__).parents[3] / "infra" / "monitoring"
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool isn't installed (Debian: prometheus)"
)


def overview(count: int = 30, **changes: Any) -> Overview:
    nights = many_nights(count)
    live = next((each.challenger for each in reversed(nights) if each.status == "promoted"), None)
    moves = [Move("champion", 1, live, 0, "promoted", nights[0].finished)] if live else []
    status = Status("kept", "no gain", last_run=2e9, last_success=2e9, first_run=1e9) if nights else None
    return replace(Overview("s3://bucket/work?region=x", nights, moves, status), **changes)


def values(text: str) -> dict[tuple[str, ...], float]:
    """Returns {(name without the prefix, values of the labels but the workspace): value}, by Prometheus' own parser."""
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.type == "gauge"
        assert family.documentation
        for sample in family.samples:
            assert sample.labels.pop("workspace") == "s3://bucket/work"
            found[sample.name.removeprefix(PREFIX), *sample.labels.values()] = sample.value
    return found


def exposed(given: Overview) -> str:
    return generate_latest(metrics_of(given)).decode()


def test_the_metrics_are_those_of_the_newest_run() -> None:
    given = overview()
    found, newest = values(exposed(given)), given.nights[-1]
    assert found["last_success_timestamp_seconds",] == 2e9
    assert found["last_run_status", "kept"] == 1
    assert found["last_run_status", "failed"] == 0
    assert found["last_decision", newest.status] == 1
    assert {stage: found["stage_seconds", stage] for stage in newest.seconds} == newest.seconds
    assert found["planned_stage_seconds", "train"] == 1600
    assert (found["runs", "promoted"], found["runs", "kept"], found["runs", "stopped"]) == (5, 20, 5)
    assert found["drift", "class_mix"] == 0.3
    assert ("drift", "brightness") not in found  # it couldn't be measured
    assert found["quarantined_share",] == 0.001
    assert found["champion_timestamp_seconds",] == given.nights[0].finished
    assert found["champion_top1_low",] < found["champion_top1",] < found["champion_top1_high",]


def test_the_account_of_false_promotions_is_told_where_a_run_has_one() -> None:
    assert ("level",) not in values(exposed(overview()))
    night = replace(many_nights(2)[-1], sequential={"level": 0.01, "per_year": 0.5, "spent": 0.2, "left": 0.1})
    found = values(exposed(overview(nights=[night])))
    names = ("level", "false_promotions_limit", "false_promotions_spent")
    assert [found[name,] for name in names] == [0.01, 0.5, 0.2]


@pytest.mark.parametrize("count", [0, 1, 400])
def test_any_number_of_runs_is_parsed(count: int) -> None:
    assert values(exposed(overview(count)))["undelivered_messages",] == 0


def queries() -> list[str]:
    """Returns every query of the dashboard and of the alerts that asks for a retraining run."""
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    asked = [target["expr"].replace("$workspace", ".*") for panel in panels for target in panel["targets"]]
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    asked += [rule["expr"] for group in groups for rule in group["rules"]]
    return [query for query in asked if PREFIX in query]


def test_no_query_asks_for_a_metric_that_no_run_has() -> None:
    names = {name for query in queries() for name in re.findall(rf"{PREFIX}\w+", query)}
    assert len(names) > 10
    assert names - {family.name for family in text_string_to_metric_families(exposed(overview()))} == set()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus isn't installed (Debian's package)")
def test_prometheus_answers_every_panel_of_retraining_runs(tmp_path: Path) -> None:
    (tmp_path / "metrics").write_text(exposed(overview()))
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    scrape: dict[str, Any] = {
        "job_name": "nights", "static_configs": [{"targets": [f"127.0.0.1:{server.server_port}"]}],
        "fallback_scrape_protocol": "PrometheusText0.0.4",
    }  # fmt: skip
    version = subprocess.run(["prometheus", "--version"], capture_output=True, text=True, check=True)
    if "version 2." in version.stdout + version.stderr:  # which doesn't know the field, nor needs it
        del scrape["fallback_scrape_protocol"]
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_ports(1)[0]}"
    flags = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(["prometheus", *flags, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        await_answer(f"http://{address}/-/ready")
        missing = [query for query in queries() if not re.search(">|==", query)]  # alerts don't fire
        deadline = time.monotonic() + 20
        while missing and time.monotonic() < deadline:
            missing = [query for query in missing if not found(address, query)]
            time.sleep(0.3)
        assert missing == []
    finally:
        process.terminate()
        process.wait()
        server.shutdown()
        server.server_close()


def found(address: str, query: str) -> list[Any]:
    url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        values = json.load(answer)
    assert values["status"] == "success", values
    result: list[Any] = values["data"]["result"]
    return result


@needs_promtool
@pytest.mark.parametrize("count", [0, 30])
def test_promtool_has_nothing_against_the_metrics(count: int) -> None:
    subprocess.run(["promtool", "check", "metrics"], input=exposed(overview(count)), text=True, check=True)


def test_a_file_for_node_exporter_is_written_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "nights.prom"
    target.write_text("old")
    write_metrics(str(target), overview())
    assert values(target.read_text())["runs", "kept"] == 20
    assert list(tmp_path.iterdir()) == [target]
    assert target.stat().st_mode & 0o044 == 0o044  # node-exporter is another user


@pytest.fixture
def gateway() -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """The address of a Pushgateway, and (method, path, body) of what it gets."""
    requests: list[tuple[str, str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            requests.append((self.command, self.path, body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Prints nothing."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()
    server.server_close()


def test_metrics_are_pushed_to_a_gateway_in_a_group_of_the_workspace(
    gateway: tuple[str, list[tuple[str, str, str]]],
) -> None:
    write_metrics(gateway[0], overview())
    [(method, path, body)] = gateway[1]
    assert method == "PUT"  # replaces the group: what is gone is gone there
    assert path == "/metrics/job/image-pipeline-retraining/workspace@base64/czM6Ly9idWNrZXQvd29yaw=="
    assert values(body)["runs", "kept"] == 20


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nights.txt", "NAME.prom alone"),
        ("nowhere/nights.prom", "no such folder"),
        ("http://gateway:99999", "no URL of HTTP"),
        ("http://", "names no host"),
    ],
)
def test_a_target_that_nobody_reads_is_an_error(target: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_target(target)


def test_a_gateway_that_is_away_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    report.report_nights(str(tmp_path), "http://127.0.0.1:9")
    assert "metrics=http://127.0.0.1:9: " in caplog.text
    assert (tmp_path / "index.html").exists()


def test_a_server_that_is_no_gateway_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Mail(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            size = 0
            while line := self.rfile.readline().strip().lower():
                size = int(line.split()[1]) if line.startswith(b"content-length:") else size
            self.rfile.read(size)
            self.wfile.write(b"220 mail.example.org ESMTP\r\n")

    with socketserver.TCPServer(("127.0.0.1", 0), Mail) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        report.report_nights(str(tmp_path), f"http://127.0.0.1:{server.server_address[1]}")
    assert "no Pushgateway answers there (BadStatusLine(" in caplog.text


DAY, NOW = 86_400, 7_200.0  # promtool's clock begins at 0; the alerts are looked at two hours later
ALERT_CASES = {  # {alert: the changes of a quiet workspace for which it fires}
    "RetrainingFailed": {"status": Status("failed", "x", last_run=NOW, last_success=NOW - 0.5 * DAY)},
    "RetrainingOverdue": {"status": Status("kept", "x", last_run=NOW - 2 * DAY, last_success=NOW - 2 * DAY)},
    "ChampionStale": {"moves": [Move("champion", 1, "a" * 16, 0, "x", NOW - 31 * DAY)]},
    "SourceDrifts": {"drift": {"class_mix": 0.3, "thresholds": {"class_mix": 0.1}}},
    "SourceQuarantined": {"data": {"rows": {"train": 1}, "quarantined_share": 0.05}},
    "NoticesWait": {"waiting": 1},
}


def quiet() -> Overview:
    """A workspace that nobody has to look at."""
    night = replace(
        many_nights(2)[-1],
        drift={"class_mix": 0.05, "thresholds": {"class_mix": 0.1}},
        data={"rows": {"train": 1}, "quarantined_share": 0.001},
    )
    moves = [Move("champion", 1, "a" * 16, 0, "x", NOW - 20 * DAY)]
    status = Status("kept", "x", last_run=NOW, last_success=NOW)
    return Overview("/work", [night], moves, status)


def with_changes(changes: dict[str, Any]) -> Overview:
    of_night = {name: value for name, value in changes.items() if name in ("drift", "data")}
    given = quiet()
    night = replace(given.nights[-1], **of_night)
    return replace(given, nights=[night], **{name: value for name, value in changes.items() if name not in of_night})


def series(given: Overview) -> list[dict[str, str]]:
    """Returns the samples as promtool takes them, the same for two hours, one a minute."""
    lines = [line for line in exposed(given).splitlines() if not line.startswith("#")]
    return [{"series": line.rsplit(" ", 1)[0], "values": f"{line.rsplit(' ', 1)[1]}x120"} for line in lines]


@needs_promtool
@pytest.mark.parametrize(
    ("firing", "changes"),
    [
        (None, {}),
        *ALERT_CASES.items(),
        ("RetrainingOverdue", {"status": Status(first_run=NOW - 2 * DAY)}),  # its first run was killed
        ("NoticesWait", {"given_up": 1}),
    ],
)
def test_each_alert_fires_for_its_reason_alone(firing: str | None, changes: dict[str, Any], tmp_path: Path) -> None:
    given = with_changes(changes)
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())
    rules["groups"] = [
        {**group, "rules": [{k: v for k, v in rule.items() if k != "annotations"} for rule in group["rules"]]}
        for group in rules["groups"]
        if group["name"] == "image-pipeline-nights"
    ]
    names = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    assert set(names) == set(ALERT_CASES)
    severity = {rule["alert"]: rule["labels"] for group in rules["groups"] for rule in group["rules"]}
    extra = {"SourceDrifts": {"distance": "class_mix"}, "RetrainingFailed": {"status": "failed"}}
    tests = [
        {
            "eval_time": "2h",
            "alertname": name,
            "exp_alerts": [{"exp_labels": {"workspace": "/work", **severity[name], **extra.get(name, {})}}]
            if name == firing
            else [],
        }
        for name in names
    ]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    case = {"interval": "1m", "input_series": series(given), "alert_rule_test": tests}
    (tmp_path / "test.yml").write_text(yaml.safe_dump({"rule_files": ["rules.yml"], "tests": [case]}))
    done = subprocess.run(
        ["promtool", "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
