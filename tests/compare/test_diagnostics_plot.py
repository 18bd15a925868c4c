"""The picture of a run's diagnostics: what was measured is drawn, and what was not leaves no panel."""

import math

import matplotlib.pyplot as plt
import pytest

from qpeft.compare.diagnostics_plot import plot_diagnostics
from qpeft.training.diagnostics_measures import two_design_variance


def line(step, layers=("0", "1", "2"), **measures):
    found = {"layers": list(layers), "tokens": 256, "rank": 4, **measures}
    return {"step": step, "diagnostics": found}


def of_a_circuit(step, scale=1.0):
    return line(
        step, n_qubits=4, circuit_share=[0.2, None, 0.4], circuit_r2=[0.9, -0.5, 0.7], effective_rank=[2.0, 3.0, 3.5],
        circuit_gradient_variance=[0.03, 0.04, 0.05], loss_gradient_variance=[scale * 1e-7, scale * 1e-8, 0.0],
    )  # fmt: skip


@pytest.fixture
def drawn(monkeypatch):
    """Figures stay open for a look at their axes."""
    monkeypatch.setattr(plt, "close", lambda figure: None)
    yield lambda: plt.gcf()
    monkeypatch.undo()
    plt.close("all")


def test_every_measure_has_a_row_with_its_numbers(tmp_path, drawn):
    lines = [{"step": 1, "loss": 2.0}, of_a_circuit(10, scale=0.0), of_a_circuit(20), of_a_circuit(30)]
    path = tmp_path / "plots" / "diagnostics.png"
    assert plot_diagnostics(lines, path) == path
    assert path.read_bytes()[:4] == b"\x89PNG"
    axes = drawn().axes
    assert len(axes) == 10
    share, depth = axes[0], axes[1]
    assert share.lines[0].get_xdata().tolist() == [10, 20, 30]
    assert share.lines[0].get_ydata().tolist() == pytest.approx([0.3] * 3)
    assert [drawn.get_label() for drawn in depth.lines] == ["step 20", "step 30"]  # at 10 the loss had no gradient
    assert depth.lines[1].get_xydata().tolist() == [[0, 0.2], [2, 0.4]]
    assert axes[2].get_ylim()[0] <= -0.5
    assert axes[4].lines[1].get_ydata()[0] == 4
    assert axes[6].lines[1].get_ydata()[0] == two_design_variance(4)
    loss = axes[8].lines[0].get_ydata()
    assert [axes[8].get_yscale(), len(loss)] == ["log", 2]
    assert loss[0] == pytest.approx((1e-7 + 1e-8) / 2)


def test_a_linear_adapter_has_a_rank_alone(tmp_path, drawn):
    assert plot_diagnostics([line(5, effective_rank=[1.5, 2.5, math.pi])], tmp_path / "d.png")
    assert len(drawn().axes) == 2
    assert [text.get_text() for text in drawn().axes[1].get_xticklabels()] == ["0", "1", "2"]


def test_nothing_is_drawn_where_nothing_was_measured(tmp_path):
    nothing = [{"step": 1, "loss": 2.0}, line(2, effective_rank=[None, None, None])]
    assert plot_diagnostics([], tmp_path / "d.png") is None
    assert plot_diagnostics(nothing, tmp_path / "d.png") is None
    assert not (tmp_path / "d.png").exists()
