"""The report of a grid, whole and at any moment before: three files that agree, and need nothing but themselves."""

import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from fabricated_grid import ARMS, diverge, fabricate
from matplotlib.text import Text

from qpeft.compare import grid_plots
from qpeft.compare.grid_plots import spread
from qpeft.compare.grid_report import write_grid_report
from qpeft.compare.results import ArmInfo, GridResults
from qpeft.compare.statistics import all_comparisons, summarise

FEW = ("adapter", "lora", "lora-same-count", "no-circuit", "classical", "branch-zero", "base")
EVIL = "<script>alert(1)</script> | *x* `y` $z$ _w_ [a](http://x.example)"


class Page(HTMLParser):
    """What a browser would fetch, the cells of tables by row, and all text."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.tags, self.rows, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "action")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        self.text += data
        if self.tags and self.tags[-1] in ("td", "th") and self.rows:
            self.rows[-1][-1] += data.strip("\n")


def write(results, folder):
    """`(report, page, markdown, values)`, after what holds for every report."""
    report = write_grid_report(results, folder)
    html, markdown = report.html.read_text(encoding="utf-8"), report.markdown.read_text(encoding="utf-8")
    values = json.loads(report.json.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    page = Page(html)
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"\b(nan|inf|None|NaN)\b", page.text + markdown)
    for plot in report.plots:
        data = plot.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert int.from_bytes(data[16:20], "big") > 1000
        assert len(data) > 10_000
        assert f"({plot.relative_to(folder).as_posix()})" in markdown
    assert len(page.sources) == len(report.plots)
    for sentence in report.sentences:
        assert sentence in page.text
    return report, page, markdown, values


@pytest.fixture
def no_plots(monkeypatch):
    """For what is about text alone."""
    monkeypatch.setattr("qpeft.compare.grid_report._draw", lambda *_: [])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    results = diverge(fabricate(FEW, seeds=(0, 1, 2), n_items=60, steps=60), "no-circuit", seeds=(2,))
    return results, write(results, tmp_path_factory.mktemp("grid"))


def test_a_whole_grid_has_its_pictures_and_its_verdict_first(whole):
    _, (report, page, markdown, values) = whole
    names = [plot.name.removeprefix("arithmetic-") for plot in report.plots]
    assert names == ["training.png", "quality.png", "differences.png", "rates.png", "counts.png"]
    verdict = values["places"][0]["verdict"]["sentence"]
    assert report.sentences[-1] == verdict
    assert page.text.index(verdict) < page.text.index("In full".lower())
    assert markdown.index(verdict) < 400
    assert values["progress"]["complete"] is True
    assert values["plan"]["learning_rates"] == whole[0].plan["learning_rates"]
    for text in ("qpeft compare recipes/compare/quick.yaml", "torch 2.9.0", "A processor", "learning_rates:"):
        assert text in page.text
        assert text in markdown


def test_page_markdown_and_json_hold_the_same_numbers(whole):
    results, (_, page, markdown, values) = whole
    lines = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in markdown.splitlines() if line[:1] == "|"
    ]
    lines = [line for line in lines if line[0] != "---"]
    assert [[cell.strip() for cell in row] for row in page.rows] == lines

    header = next(row for row in page.rows if row[:2] == ["arm", "kind"])
    table = {row[0]: dict(zip(header, row, strict=True)) for row in page.rows if len(row) == len(header)}
    for arm in values["places"][0]["arms"]:
        row = table[arm["label"]]
        assert row["trained numbers"] == f"{arm['accounting']['trainable']:,}"
        own = summarise(results.select("small-llama", "arithmetic", arm["name"], "final"), "strict_accuracy")
        found = arm["measures"]["strict_accuracy"]
        assert found["mean"] == pytest.approx(own.mean)
        text = f"{100 * own.mean:.1f}"
        if own.n > 1:
            text += f" [{100 * own.low:.1f}, {100 * own.high:.1f}]"
        assert row["strict accuracy, % (test)"] == text
        if arm["learning_rate"]:
            assert row["learning rate"].split()[0] == f"{arm['learning_rate']:.3g}"
    comparisons = all_comparisons(results, "small-llama", "arithmetic")
    for each, written in zip(comparisons, values["places"][0]["comparisons"], strict=True):
        assert written["difference"] == pytest.approx(each.difference)
        assert str(each) in page.text


def test_a_diverged_run_is_named_and_in_no_mean(whole):
    _, (_, page, markdown, values) = whole
    sentence = "circuit removed diverged in 1 final run (seed 2: not finite)"
    assert sentence in page.text
    assert sentence in markdown
    arm = next(arm for arm in values["places"][0]["arms"] if arm["name"] == "no-circuit")
    assert arm["seeds"] == [0, 1]
    assert arm["measures"]["strict_accuracy"]["n"] == 2
    assert arm["diverged"] == [[2, "not finite"]]


def test_the_share_of_the_reference_is_stated(whole):
    _, (report, _, _, values) = whole
    assert values["places"][0]["arms"][0]["share"] == pytest.approx(89_856 / 460_800)
    ((name, table),) = report.headlines
    assert name == "small-llama, arithmetic"
    rows = {row[0]: row for row in table.rows}
    assert table.heads[2] == "share of LoRA, r = 4"
    assert rows["QTHA, r = 4"][1:3] == ("89,856", "19.5 %")
    assert len(rows) <= 7


def test_nothing_measured_yet(tmp_path):
    results = replace(fabricate(FEW), cells=())
    report, page, markdown, values = write(results, tmp_path)
    assert report.plots == ()
    assert f"Nothing is measured yet: 0 of {results.planned} cells." in page.text
    assert values["places"] == []
    assert "qpeft compare" in markdown


def test_no_plan_and_no_arms(tmp_path):
    _, page, _, _ = write(GridResults("empty", {}, ()), tmp_path)
    assert "Nothing is measured yet." in page.text


def test_a_sweep_alone_gives_no_verdict(tmp_path):
    results = fabricate(FEW, stages=("sweep",), steps=40)
    report, page, _, values = write(replace(results, planned=62), tmp_path)
    assert "This is a partial report: 25 of 62 cells are finished." in page.text
    assert "no verdict yet, for no final run is finished" in report.sentences[-1]
    assert "Final runs are missing: seeds 0, 1, 2, 3, 4 of all arms." in page.text
    assert values["places"][0]["comparisons"] == []
    assert {plot.stem.rpartition("-")[2] for plot in report.plots} == {"training", "quality", "rates", "counts"}
    assert "1 (sweep)" in page.text


def test_one_seed_has_no_interval_over_seeds(tmp_path, no_plots):
    results = fabricate(FEW, seeds=(0,), n_items=40, steps=40)
    plan = {**results.plan, "seeds": {"sweep": [100], "final": [0, 1]}}
    _, page, _, values = write(replace(results, plan=plan), tmp_path)
    adapter = values["places"][0]["arms"][0]
    assert adapter["measures"]["strict_accuracy"]["low"] is None
    assert adapter["missing"] == [1]
    verdicts = {row[-1] for row in page.rows if row[0] == "frozen base" and len(row) == 8}
    assert verdicts == {"adapter better, one seed", "no interval, one seed"}
    assert "seed 1 of QTHA, r = 4, LoRA, r = 4" in page.text
    assert (
        "frozen base"
        not in re.search(r"Final runs are missing: [^.]*\.", page.text.replace("frozen base,", "")).group()
    )


def test_arms_without_final_runs_stand_apart(tmp_path, no_plots):
    results = fabricate(FEW, seeds=(0, 1), n_items=40, steps=40)
    cells = [cell for cell in results.cells if cell.stage == "sweep" or cell.arm in ("adapter", "base")]
    _, page, _, values = write(replace(results, cells=tuple(cells)), tmp_path)
    arms = {arm["name"]: arm for arm in values["places"][0]["arms"]}
    assert arms["lora"]["stage"] == "sweep"
    assert arms["branch-zero"]["stage"] is None
    assert "none yet" in page.text
    assert "seeds 0, 1 of LoRA, r = 4" in page.text


def test_the_adapter_diverged_in_every_run(tmp_path):
    results = fabricate(FEW, seeds=(0, 1), n_items=40, steps=40)
    for stage in ("sweep", "final"):
        results = diverge(results, "adapter", stage)
    report, page, _, values = write(results, tmp_path)
    assert "diverged in 2 final runs" in page.text
    assert values["progress"]["diverged"] >= 7
    assert report.plots
    assert values["places"][0]["verdict"]["rung"] == 0


def test_a_grid_of_diverged_cells_alone(tmp_path):
    results = fabricate(("adapter", "lora"), seeds=(0, 1))
    for arm, stage in [("adapter", "sweep"), ("adapter", "final"), ("lora", "sweep"), ("lora", "final")]:
        results = diverge(results, arm, stage)
    report, _, _, _ = write(results, tmp_path)
    assert [plot.stem.rpartition("-")[2] for plot in report.plots] == ["rates"]


def test_two_final_rates_of_one_arm_are_a_problem_that_is_named(tmp_path, no_plots):
    results = fabricate(("adapter", "lora"), seeds=(0, 1), n_items=20, steps=40)
    twice = replace(next(cell for cell in results.cells if cell.stage == "final"), learning_rate=0.5)
    _, page, _, values = write(replace(results, cells=(*results.cells, twice)), tmp_path)
    assert "no verdict. adapter at small-llama, arithmetic has two final cells for one seed" in page.text
    assert values["places"][0]["problem"]


def test_places_that_wait_are_named(tmp_path, no_plots):
    results = fabricate(("adapter", "lora"), seeds=(0, 1), n_items=20, steps=40, tasks=("arithmetic",))
    plan = {**results.plan, "tasks": {"arithmetic": {}, "mawps": {}}}
    _, page, _, _ = write(replace(results, plan=plan, planned=40), tmp_path)
    assert "Nothing is measured yet of small-llama, mawps." in page.text


def test_each_base_has_its_own_labels(tmp_path, no_plots):
    results = fabricate(FEW, bases=("one", "two"), n_items=40)
    larger = replace(results.arms["lora-same-count"], label="LoRA, same count (r = 3)", note="44 more.")
    _, _, _, values = write(replace(results, elsewhere={"two": {"lora-same-count": larger}}), tmp_path)
    labels = [{arm["name"]: (arm["label"], arm["note"]) for arm in place["arms"]} for place in values["places"]]
    assert labels[1].pop("lora-same-count") == (larger.label, larger.note)
    assert labels[0].pop("lora-same-count") == ("LoRA, same count (r = 1)", "What lora-same-count is for.")
    assert labels[0] == labels[1]


def test_labels_reasons_and_titles_are_text_whatever_they_hold(tmp_path):
    results = fabricate(("adapter", "lora", "no-circuit"), seeds=(0, 1), n_items=20, steps=40, title=EVIL)
    arms = {
        name: replace(arm, label=f"{EVIL} {name} \n\x07 量子 {'long ' * 40}", note=EVIL)
        for name, arm in results.arms.items()
    }
    arms["adapter"] = replace(arms["adapter"], label="_hidden $x^2")
    results = diverge(replace(results, arms=arms, command=f"qpeft compare '{EVIL}' ```"), "lora", seeds=(0,))
    _, page, markdown, _ = write(results, tmp_path)
    assert EVIL in page.text
    outside = re.sub(r"(`{3,})\n.*?\n\1", "", markdown, flags=re.DOTALL)
    assert "<script" not in outside.replace("\\<script", "")
    assert "](http" not in outside
    assert "````" in markdown


def test_numbers_that_are_not_finite_do_not_reach_the_page(tmp_path):
    results = fabricate(("adapter", "lora"), seeds=(0, 1, 2), n_items=20, steps=40)
    cells = tuple(
        replace(cell, train_loss=float("nan"), metrics={**cell.metrics, "loss": float("inf")},
                losses=((1, float("nan")), *cell.losses[1:])) if cell.seed == 1 else cell
        for cell in results.cells
    )  # fmt: skip
    _, _, _, values = write(replace(results, cells=cells), tmp_path)
    assert values["places"][0]["arms"][0]["measures"]["train_loss"]["n"] == 2


def test_a_loss_may_decide(tmp_path):
    results = replace(fabricate(FEW, seeds=(0, 1), n_items=20, steps=40), metric={"arithmetic": "loss"})
    _, page, _, values = write(results, tmp_path)
    assert values["places"][0]["lower_is_better"] is True
    assert "By loss, which decides:" in page.text


def test_without_a_sweep_and_without_an_adapter(tmp_path):
    results = fabricate(("lora", "lora-same-count"), stages=("final",), seeds=(0, 1), n_items=20, steps=40)
    report, _, _, values = write(results, tmp_path)
    assert values["places"][0]["comparisons"] == []
    assert {plot.stem.rpartition("-")[2] for plot in report.plots} == {"training", "quality", "counts"}


def test_texts_beside_the_axes_stand_apart_and_nothing_is_clipped(tmp_path, monkeypatch):
    drawn = []
    save = grid_plots.save_figure

    def keep(plt, figure, path):
        figure.draw_without_rendering()
        drawn.append((path.stem, figure))
        texts = [text for axes in figure.axes for text in axes.texts if text.get_text() != "×"]
        boxes = [Text.get_window_extent(text) for text in texts]  # without the line to a point
        for one, other in itertools.combinations(boxes, 2):
            assert not one.overlaps(other), path
        edge = figure.bbox
        for box in boxes + [legend.get_window_extent() for axes in figure.axes if (legend := axes.get_legend())]:
            assert edge.x0 <= box.x0 < box.x1 <= edge.x1 + 1, path
            assert edge.y0 - 1 <= box.y0 < box.y1 <= edge.y1 + 1, path
        return save(plt, figure, path)

    monkeypatch.setattr(grid_plots, "save_figure", keep)
    write_grid_report(fabricate(tuple(ARMS), seeds=(0, 1), n_items=20, steps=40), tmp_path)
    assert len(drawn) == 5


def test_labels_are_spread_no_farther_than_needed():
    assert spread([], 0.1) == []
    assert spread([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert spread([0.5, 0.5], 0.2) == pytest.approx([0.4, 0.6])
    assert spread([0.99, 1.0, 1.0], 0.1) == pytest.approx([0.8, 0.9, 1.0])
    places = spread([0.0] * 8 + [0.5], 0.1)
    assert places == pytest.approx([0.1 * i for i in range(9)])


def test_a_label_for_matplotlib_is_short_and_no_formula():
    assert grid_plots.plain("_a $x$ \n b") == "\u200a_a \\$x\\$ b"
    assert len(grid_plots.plain("word " * 50, 20)) <= 20
    assert len(grid_plots.plain("x" * 200, 20)) <= 20


def test_an_arm_without_numbers_is_still_a_row(tmp_path, no_plots):
    results = fabricate(("adapter", "lora"), seeds=(0, 1), n_items=20, steps=40)
    arms = {**results.arms, "later": ArmInfo("later", "an arm to come", "matched")}
    _, page, _, _ = write(replace(results, arms=arms), tmp_path)
    assert any(row[0] == "an arm to come" for row in page.rows)
