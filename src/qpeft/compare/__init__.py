"""Runs side by side: their numbers, plots and a report that opens without a network."""

from qpeft.compare.arms import Arm, read_arm
from qpeft.compare.plots import plot_accuracy, plot_fidelity, plot_losses
from qpeft.compare.report import write_report

__all__ = ["Arm", "plot_accuracy", "plot_fidelity", "plot_losses", "read_arm", "write_report"]
