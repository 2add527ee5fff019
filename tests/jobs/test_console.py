"""The console: one line that fits the terminal, time left and rates, sizes in MB, and lines that are kept."""

import io
import re
from collections import deque

import pytest
from rich.console import Console
from rich.table import Table

from jobs.terminal import console as console_module
from jobs.terminal.console import Display, Stage, clock, loading, print_table
from pipeline.core.progress import Bytes, begin, message


def shown_on(monkeypatch: pytest.MonkeyPatch, width: int, terminal: bool) -> io.StringIO:
    out = io.StringIO()
    console = Console(
        file=out, width=width, force_terminal=terminal, soft_wrap=True, highlight=False, markup=False, emoji=False
    )
    monkeypatch.setattr(console_module, "console", console)
    return out


def test_brackets_and_colons_of_names_stay() -> None:
    table = Table("version")
    table.add_row("d [e]f :ant:")
    with console_module.console.capture() as captured:
        console_module.console.print("a [b]c :ant:")
        console_module.console.print(table)
    assert "a [b]c :ant:\n" in captured.get()
    assert "d [e]f :ant:" in captured.get()


def stage_of(name: str, done: int, total: int, remark: str = "", seconds: float = 10.0) -> Stage:
    """Returns a stage that got from 0 to `done` in `seconds`."""
    stage = Stage(name)
    stage.report(type(done)(0), total, remark)
    first, _ = stage.reports[0]
    stage.reports = deque([(first - seconds, 0)])
    stage.report(done, total, remark)
    return stage


@pytest.mark.parametrize(
    ("done", "total", "remark", "counts", "pace"),
    [
        (300, 1200, "", "300/1,200", "0:30 left  30/s"),
        (300, 1200, "8,000 images/s", "300/1,200", "0:30 left"),  # one rate is enough
        (1200, 1200, "", "1,200/1,200", "120/s"),
        (5, 100, "", "5/100", "3:10 left  0.5/s"),
        (300, 0, "", "300", "30/s"),
        (1, 1, "", "1/1", ""),
        (Bytes(85_000_000), Bytes(170_500_000), "", "85.0/170.5 MB", "0:10 left  8.5 MB/s"),
        (Bytes(85_000_000), Bytes(0), "", "85.0 MB", "8.5 MB/s"),
    ],
)
def test_a_stage_has_counts_time_left_and_a_rate(done: int, total: int, remark: str, counts: str, pace: str) -> None:
    stage = stage_of("write", done, total, remark)
    assert (stage.counts(), stage.pace()) == (counts, pace)


def test_a_resumed_stage_has_the_rate_of_what_it_did_itself() -> None:
    stage = Stage("train")
    stage.report(1000, 1200, "")
    stage.reports = deque([(stage.reports[0][0] - 10, 1000)])
    stage.report(1100, 1200, "")
    assert stage.pace() == "0:10 left  10/s"


def test_a_stage_that_begins_again_forgets_its_rate() -> None:
    stage = stage_of("evaluate", 50, 50)
    stage.report(1, 50, "")
    assert stage.pace() == ""


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3725, "1:02:05")])
def test_durations(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_the_changing_line_fits_the_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    shown_on(monkeypatch, width, terminal=True)
    display = Display()
    remark = "epoch 4.20  loss 0.310  8,034 images/s  compute 97% [augment] 3%"
    for done in range(1, 4):
        display("train", 350_000 + done, 1_200_000, remark)
        line = display._line()
        assert line.cell_len < width
        assert "\n" not in line.plain
    assert "350,003/1,200,000" in line.plain or width == 40
    assert ("8,034 images/s" in line.plain) == (width >= 80)
    begin(display, "starting Ray")
    assert "starting Ray" in display._line().plain


def test_elsewhere_stages_begin_and_end_with_a_line_and_messages_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    out = shown_on(monkeypatch, 200, terminal=False)
    with Display() as display:
        begin(display, "starting Ray")
        for done in range(101):
            display("write", done, 100)
        message(display, "epoch 4  top-1 98.1 %")
        display("watch", 0, 0, "no progress for [3] s")
    lines = out.getvalue().splitlines()
    assert lines[0] == "starting Ray"
    assert [line.split()[:2] for line in lines[1:3]] == [["write", "0/100"], ["write", "100/100"]]
    assert lines[3:] == ["epoch 4  top-1 98.1 %", "watch      no progress for [3] s"]


def test_on_a_terminal_messages_stay_and_the_changing_line_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    out = shown_on(monkeypatch, 80, terminal=True)
    with Display() as display:
        display("train", 10, 100, "loss 2.1")
        message(display, "epoch 4  top-1 98.1 %")
    text = out.getvalue()
    assert "epoch 4  top-1 98.1 %" in text
    assert text.rstrip("\n").endswith("\x1b[2K") or "\x1b[?25h" in text  # the line is erased, the cursor is back


def test_lines_of_a_table_have_no_blanks_at_their_ends(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("\nphotos", [("rows", "3"), ("path", "/a/long/place[/1]")])
    assert capsys.readouterr().out == "\nphotos\nrows  3\npath  /a/long/place[/1]\n"


def test_a_path_in_a_table_is_one_line_on_a_terminal_and_texts_are_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    out = shown_on(monkeypatch, 40, terminal=True)
    path = f"/a/{'long' * 12}/result.json"
    print_table("photos", [("result", path), ("top-1", "0.92 [0.87, 0.95] (184 of 200 validation images)")])
    text = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert path in text
    assert "(184 of 200\n        validation images)" in text


def test_loading_is_told_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    out = shown_on(monkeypatch, 80, terminal=False)
    with loading():
        assert out.getvalue() == "loading PyTorch\n"
