"""Arms read from run folders, their plots, and a report that needs nothing but itself."""

import json
import re
from html.parser import HTMLParser

import pytest

from fabricated_runs import LORA_PARAMETERS, QTHA_PARAMETERS, write_arm
from qpeft.compare import Arm, plot_accuracy, plot_losses, read_arm, write_report
from qpeft.errors import InputError

TITLES = {"answer_accuracy": "right answer", "strict_accuracy": "strict"}


@pytest.fixture
def arms(tmp_path):
    return [
        read_arm("base", write_arm(tmp_path / "base", 0.1, 0.0)),
        read_arm("QTHA", write_arm(tmp_path / "qtha", 0.6, 0.5, QTHA_PARAMETERS)),
        read_arm("LoRA", write_arm(tmp_path / "lora", 0.7, 0.6, LORA_PARAMETERS)),
    ]


def png_size(path):
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def test_an_arm_holds_what_its_run_measured(arms):
    base, qtha, _ = arms
    assert base.training == {}
    assert base.losses == []
    assert qtha.parameters == QTHA_PARAMETERS
    assert qtha.accuracy["strict_accuracy"].value == 0.5
    assert qtha.accuracy["strict_accuracy"].n == 200
    assert [step for step, _ in qtha.losses] == list(range(1, 111))
    assert [step for step, _ in qtha.eval_losses] == [55, 110]


@pytest.mark.parametrize("content", [None, "{", "[]", '{"training": {}}'])
def test_a_run_that_is_not_finished_is_no_arm(tmp_path, content):
    (tmp_path / "run").mkdir()
    if content is not None:
        (tmp_path / "run/result.json").write_text(content)
    with pytest.raises(InputError, match="no finished and evaluated run"):
        read_arm("x", tmp_path / "run")


def test_a_cut_off_metric_line_is_passed_over(tmp_path):
    folder = write_arm(tmp_path / "qtha", 0.6, 0.5, QTHA_PARAMETERS)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 111, "lo')
    assert read_arm("x", folder).losses[-1][0] == 110


def test_plots_are_written_where_they_were_asked_for(arms, tmp_path):
    for path in (
        plot_losses(arms, tmp_path / "plots/loss.png"),
        plot_accuracy(arms, tmp_path / "plots/a.png", TITLES),
    ):
        width, height = png_size(path)
        assert width > 1000
        assert height > 500
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["a.png", "loss.png"]


def test_the_same_runs_give_the_same_picture(arms, tmp_path):
    first, second = (plot_losses(arms, tmp_path / name).read_bytes() for name in ("1.png", "2.png"))
    assert first == second


def test_many_arms_are_all_drawn(arms, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("qpeft.compare.plots.save_figure", lambda plt, figure, path: drawn.append(figure))
    plot_losses([arms[1]] * 9, tmp_path / "x.png")
    plot_accuracy([arms[1]] * 9, tmp_path / "x.png", TITLES)
    losses, accuracy = drawn
    assert len(losses.axes[0].lines) == 9 * 3  # each step, running mean, validation
    assert len(accuracy.axes[0].patches) == 9 * 2


def test_the_bars_and_whiskers_are_the_measured_shares(arms, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("qpeft.compare.plots.save_figure", lambda plt, figure, path: drawn.append(figure))
    plot_accuracy(arms, tmp_path / "x.png", TITLES)
    heights = sorted(round(bar.get_height(), 6) for bar in drawn[0].axes[0].patches)
    assert heights == [0.0, 10.0, 50.0, 60.0, 60.0, 70.0]


def test_runs_without_losses_or_intervals_leave_gaps(arms, tmp_path):
    base = Arm("base", {})
    assert plot_losses([base], tmp_path / "loss.png").exists()
    assert plot_accuracy([base, arms[1]], tmp_path / "accuracy.png", TITLES).exists()


class Page(HTMLParser):
    """Collects what a browser would fetch, and the cells of tables."""

    def __init__(self):
        super().__init__()
        self.sources, self.tags, self.cells = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        if self.tags and self.tags[-1] in ("td", "th"):
            self.cells.append(data)


def report(tmp_path, arms, **changes):
    settings = {
        "title": "Two arms", "summary": ["One sentence."], "heads": ["", "QTHA"], "rows": [["strict", "50 %"]],
        "notes": ["small print"], "pictures": [(plot_losses(arms, tmp_path / "loss.png"), "losses")],
        "examples": [{"question": "1+1?", "answers": [("QTHA", "2\n#### 2")]}], "commands": "qpeft demo",
        "made_on": "a machine",
    }  # fmt: skip
    path = write_report(tmp_path / "report.html", **{**settings, **changes})
    text = path.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    return text, page


def test_the_report_opens_without_network_and_without_scripts(arms, tmp_path):
    text, page = report(tmp_path, arms)
    assert page.sources
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"base64,[^\"]*", "", text))
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert {"strict", "50 %"} <= set(page.cells)
    for part in ("Two arms", "One sentence.", "small print", "1+1?", "qpeft demo", "a machine"):
        assert part in text


def test_what_models_write_cannot_change_the_page(arms, tmp_path):
    evil = "<script>alert(1)</script><img src=http://x.example/y>"
    text, page = report(
        tmp_path, arms, title=evil, examples=[{"question": evil, "answers": [(evil, evil)]}], commands=evil
    )
    assert "script" not in page.tags
    assert page.tags.count("img") == 1
    assert "&lt;script&gt;" in text


def test_a_report_is_whole_or_the_old_one(arms, tmp_path, monkeypatch):
    report(tmp_path, arms, title="old")

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        report(tmp_path, arms, title="new")
    assert "old" in (tmp_path / "report.html").read_text()
    assert json.dumps(sorted(p.name for p in tmp_path.glob(".report*"))) == "[]"
