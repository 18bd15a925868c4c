"""What a call on a chip is expected to return, from the chip's snapshot instead of the chip; differentiable.

It stands apart from the executor that made the call, since other processes differentiate the rows that they sent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qpeft.chips.virtual import VirtualChip
from qpeft.circuits import Circuit
from qpeft.qpu.mitigation import AffineFit
from qpeft.qpu.plans import Planner


@dataclass(frozen=True)
class Ran:
    """How rows of a call were run.

    Args:
        homes: Rows by region.
        readout: Whether readout errors are in the result.
        fits: Of each region, where results were normalised.
    """

    homes: tuple[tuple[int, ...], ...]
    readout: bool
    fits: list[AffineFit] | None


def expected(
    planner: Planner, model: VirtualChip, circuit: Circuit, inputs: Tensor, weights: Tensor, ran: Ran
) -> Tensor:
    """Expectations with the noise of the regions where rows ran.

    Args:
        planner: Of the chip's regions.
        model: The chip.
        circuit: What ran.
        inputs: ``(rows, n_inputs)``.
        weights: ``(n_weights,)``.
        ran: How.

    Returns:
        ``(rows, n_observables)``: float64 if the inputs are float64, else float32.
    """
    plan = planner.plan(circuit, model.snapshot)
    inputs = inputs.to(torch.float64 if inputs.dtype == torch.float64 else torch.float32)
    nothing = 0 * (inputs.sum() + weights.sum())  # no rows have a gradient too
    out = inputs.new_zeros(len(inputs), circuit.n_observables) + nothing.to(inputs.dtype)
    for region, rows in enumerate(ran.homes):
        if not rows:
            continue
        values = plan.twin(model, region, inputs[list(rows)], weights, readout=ran.readout)
        if ran.fits is not None:
            values = ran.fits[region].undo(values)
        out[list(rows)] = values
    return out
