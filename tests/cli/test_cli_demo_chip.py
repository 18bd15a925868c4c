"""The demo on the virtual chip, from a trained adapter to the report, on the tiny model."""

import json

import pytest

from qpeft.cli import demo, demo_chip


@pytest.fixture
def changes(llama_base):
    return [
        f"model.name={llama_base}", "model.dtype=float32", "data.max_length=400", "adapter.r=2",
        "adapter.arch=quantum",
        "adapter.bond_dim=8", "adapter.inner_features=256", "adapter.target_modules=[q_proj]",
        "evaluation.max_new_tokens=3",
    ]  # fmt: skip


def test_a_whole_demo_on_the_virtual_chip(llama_base, changes, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(demo, "QUICK", [*demo.QUICK, "training.max_steps=2", "evaluation.limit=2"])
    monkeypatch.setattr(demo_chip, "STEPS", 1)
    output, source = tmp_path / "chip", tmp_path / "demo" / "qtha"

    def run():
        demo_chip.run(output, source, "virtual-wukong", None, 200, 2, True, False, True, changes)

    run()
    summary = json.loads(capfd.readouterr().out)
    assert summary == json.loads((output / "summary.json").read_text())
    assert list(summary["arms"]) == ["exact", "chip", "off", "mean"]
    assert all(arm["n"] == 2 for arm in summary["arms"].values())
    chip = summary["arms"]["chip"]["execution"]
    assert chip["executor"] == "virtual:wukong-72"
    assert chip["circuits"] > chip["packed_circuits"] > 0
    tuned = summary["tuned"]["execution"]
    assert tuned["executor"] == "origin:72@127.0.0.1"
    assert tuned["rows"]["gradient"] > 0
    assert 0 < summary["study"]["tensored"]["slope"] < 1.2
    assert {"chip.png", "fidelity.png"} == {path.name for path in (output / "plots").iterdir()}
    page = (output / "report.html").read_text()
    assert "No quantum computer took part" in page
    for sentence in summary["sentences"]:
        assert sentence.split("<Z>")[0][:40] in page
    before = (output / "chip.json").stat().st_mtime_ns
    run()  # everything was done: only the report is written again
    assert json.loads(capfd.readouterr().out)["arms"] == summary["arms"]
    assert (output / "chip.json").stat().st_mtime_ns == before


def test_folders_of_other_demos_are_left_alone(qpeft, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    said = qpeft("demo", "--executor", "virtual-wukong", "--output", tmp_path)
    assert said.code == 2
    assert "something else than this demo" in said.err
    other = tmp_path / "chip"
    other.mkdir()
    (other / "demo-chip.json").write_text("{}")
    said = qpeft("demo", "--executor", "virtual-wukong", "--output", other)
    assert said.code == 2
    assert "other settings" in said.err
