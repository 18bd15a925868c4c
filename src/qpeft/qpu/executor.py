"""Expectations from a chip: rows of angles in, one number for every row and observable out.

    rows -> native angles -> blocks side by side on the chip -> broker -> counts -> mitigation -> rows

Observables are grouped by measurement basis, and a circuit is compiled once for every basis and region. Rows move on
by one region from call to call (:mod:`qpeft.chips.layout`), so that none is tied to a bad one. Calibrations are made
anew when they are old, or when the chip says that it has changed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qpeft.chips import ChipSnapshot, NativeTemplate
from qpeft.chips.virtual import VirtualChip
from qpeft.circuits import Circuit
from qpeft.circuits.parameters import weights_as_inputs
from qpeft.errors import InputError
from qpeft.qpu.calibration import Calibration, measure_readout
from qpeft.qpu.mitigation import (
    AffineFit,
    Estimate,
    Fit,
    Mitigation,
    estimate,
    extrapolation_weights,
    fit_affine,
    fold_cz,
    reference_angles,
)
from qpeft.qpu.plans import Plan, Planner, Regions
from qpeft.qpu.protocol import Block, Counts
from qpeft.qpu.report import ExecutorReport
from qpeft.qpu.twin import Ran, expected
from qpeft.simulators import run

if TYPE_CHECKING:
    from qpeft.qpu.broker import Broker

_SEEDS = 2**63 - 1
_SEED_STEP = 0x1E3779B97F4A7C15  # far apart and odd, so that no two calls share a seed
_CALIBRATION = 0x2545F4914F6CDD1D


class ChipExecutor:
    """Runs circuits on a chip through a broker.

    Args:
        broker: Sends jobs and keeps the ledger; a :class:`qpeft.qpu.broker.Broker`.
        shots: Shots of every row in every measurement basis.
        layout: Keyword arguments of :func:`qpeft.chips.packing.plan_layout` (``buffer``, ``max_blocks``,
            ``min_fidelity``, ...).
        mitigation: What is done about errors.
        seed: Of simulated chips: equal seeds, chips and calls give equal results.
        crosstalk: What :meth:`twin` assumes of blocks side by side, as :class:`~qpeft.chips.virtual.VirtualChip`.
        snapshot_minutes: How often the chip is asked for its state.
        clock: Seconds; for tests.
        temporary: A folder that goes with the executor.

    Raises:
        InputError: Shots that the provider does not allow.

    Example:
        >>> from qpeft.circuits import qtha_block
        >>> from qpeft.qpu.settings import ExecutionSettings, open_executor
        >>> executor = open_executor(ExecutionSettings("virtual-wukong", shots=1000))
        >>> executor.expectations(qtha_block(n_qubits=2, n_layers=1), torch.zeros(5, 2), torch.zeros(8)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        broker: Broker,
        *,
        shots: int = 1000,
        layout: Mapping[str, Any] | None = None,
        mitigation: Mitigation | None = None,
        seed: int = 0,
        crosstalk: float = 0.0,
        snapshot_minutes: float = 30.0,
        clock: Callable[[], float] = time.time,
        temporary: TemporaryDirectory[str] | None = None,
    ) -> None:
        caps = broker.provider.caps()
        if isinstance(shots, bool) or not isinstance(shots, int) or not caps.min_shots <= shots <= caps.max_shots:
            raise InputError(
                f"shots must be a whole number from {caps.min_shots} to {caps.max_shots} on "
                f"{broker.provider.name} (got {shots!r})."
            )
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= _SEEDS:
            raise InputError(f"seed must be a whole number from 0 to 2**63 - 1 (got {seed!r}).")
        self.broker = broker
        self.shots = shots
        self.mitigation = mitigation or Mitigation()
        self.seed = seed
        self.crosstalk = crosstalk
        self.snapshot_minutes = snapshot_minutes
        self._clock = clock
        self._temporary = temporary
        # A provider that cannot pack gets one circuit at a time, on the best region.
        self._planner = Planner({**(layout or {}), **({} if caps.packs else {"max_blocks": 1})})
        wanted = self.mitigation.calibration_shots or 10 * shots
        self._calibration_shots = max(caps.min_shots, min(wanted, caps.max_shots))
        self._snapshot: ChipSnapshot | None = None
        self._asked = 0.0
        self._step = 0
        self._regions = 0
        self._circuits = 0
        self._calibrations: dict[Regions, Calibration] = {}
        self._names: list[str] = []
        self._calls = Counter[str]()
        self._rows = Counter[str]()

    @property
    def name(self) -> str:
        """Provider and chip."""
        return self.broker.provider.name

    def __deepcopy__(self, memo: dict[int, Any]) -> ChipExecutor:
        return self  # copies of a model share the chip, its ledger and its budget

    def __reduce__(self) -> Any:
        raise InputError(
            f"an executor ({self.name}) holds a connection and cannot be saved with a model: save the state dict or "
            f"the adapter, or switch the model back first."
        )

    def expectations(self, circuit: Circuit, inputs: Tensor, weights: Tensor, purpose: str = "forward") -> Tensor:
        """Estimate expectations for a batch, mitigated.

        Args:
            circuit: What to run.
            inputs: ``(rows, n_inputs)``, radians before the circuit's scales.
            weights: ``(n_weights,)``, radians.
            purpose: What for, as the ledger keeps it: ``"forward"``, ``"gradient"``, ``"evaluation"``.

        Returns:
            ``(rows, n_observables)`` on the device of the inputs: float64 if they are float64, else float32. Not
            differentiable by itself; a :class:`~qpeft.layer.QuantumLayer` is.

        Raises:
            InputError: A shape that does not fit, angles that are not finite, or a circuit that fits nowhere.
            ProviderError: What went wrong at the provider.
        """
        return self.estimate(circuit, inputs, weights, purpose).values

    def estimate(self, circuit: Circuit, inputs: Tensor, weights: Tensor, purpose: str = "forward") -> Estimate:
        """As :meth:`expectations`, with the standard errors that the shots leave."""
        plan, angles = self._prepare(circuit, inputs, weights)
        self._rows[purpose] += len(inputs)
        found = self._measure(plan, *angles, purpose)
        dtype = torch.float64 if inputs.dtype == torch.float64 else torch.float32
        return Estimate(*(part.to(inputs.device, dtype) for part in found))

    def twin(self, circuit: Circuit, inputs: Tensor, weights: Tensor) -> Tensor:
        """What the last call was expected to return, from the chip's snapshot instead of the chip; differentiable.

        Noise of gates as the snapshot states it, readout errors where they are not inverted, and the affine
        normalisation where there is one; every row on the region where the last call ran it.

        Returns:
            ``(rows, n_observables)`` like :meth:`expectations`.
        """
        ran = self.ran(circuit, len(inputs))
        return expected(self._planner, self._model, circuit, inputs, weights, ran)

    def ran(self, circuit: Circuit, rows: int, first: int = 0, total: int | None = None) -> Ran:
        """How so many rows of the last call were run: from the ``first`` on, of ``total`` (by default of all)."""
        plan = self._planner.plan(circuit, self._chip())
        fits = self._calibration(plan).fits[plan.shape] if self.mitigation.affine else None
        homes = plan.rows_by_region(rows if total is None else total, self._step)
        own = tuple(tuple(row - first for row in home if first <= row < first + rows) for home in homes)
        return Ran(own, self.mitigation.readout == "none", fits)

    @property
    def model(self) -> tuple[ChipSnapshot, float, dict[str, Any]]:
        """What :meth:`twin` assumes: the chip, its crosstalk, and where circuits may stand."""
        return self._chip(), self.crosstalk, self._planner.options

    def extrapolate(
        self,
        circuit: Circuit,
        inputs: Tensor,
        weights: Tensor,
        factors: Sequence[int] = (1, 3, 5),
        fit: Fit = "richardson",
    ) -> tuple[Estimate, list[Estimate]]:
        """Extrapolate to no noise of CZ, to check what noise does to a circuit.

        Args:
            circuit: What to run.
            inputs: ``(rows, n_inputs)``.
            weights: ``(n_weights,)``.
            factors: How often each CZ stands; odd numbers.
            fit: ``"richardson"`` or ``"linear"``.

        Returns:
            The extrapolated estimate, and those of all factors.
        """
        coefficients = extrapolation_weights(factors, fit)
        plan, angles = self._prepare(circuit, inputs, weights)
        self._rows["evaluation"] += len(inputs) * len(factors)
        found = [self._measure(plan, *angles, "evaluation", times) for times in factors]
        values = torch.einsum("j,jbm->bm", coefficients, torch.stack([each.values for each in found]))
        squares = torch.stack([each.errors for each in found]).square()
        return Estimate(values, torch.einsum("j,jbm->bm", coefficients.square(), squares).sqrt()), found

    def report(self) -> ExecutorReport:
        """What was asked of this executor, and what its ledger says was sent and spent for it."""
        spent = self.broker.ledger.spent(self.name)
        price = self.broker.provider.caps().price
        return ExecutorReport(
            executor=self.name,
            chip=self._chip().name,
            circuits=self._circuits,
            packed_circuits=spent.circuits,
            jobs=spent.jobs,
            shots=spent.shots,
            chip_seconds=spent.seconds,
            cost=spent.money,
            currency=price.currency if price else "",
            rows=dict(self._rows),
            regions=self._regions,
            calibrations=tuple(self._names),
        )

    def close(self) -> None:
        """Let go of the provider and the ledger."""
        self.broker.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _chip(self) -> ChipSnapshot:
        now = self._clock()
        if self._snapshot is None or now - self._asked > 60 * self.snapshot_minutes:
            found, self._asked = self.broker.provider.snapshot(), now
            if self._snapshot is None or found.id != self._snapshot.id:
                self._snapshot, self._calibrations = found, {}
                self._model = VirtualChip(found, crosstalk=self.crosstalk)
        return self._snapshot

    def _prepare(self, circuit: Circuit, inputs: Tensor, weights: Tensor) -> tuple[Plan, tuple[Tensor, Tensor]]:
        if inputs.dim() != 2 or inputs.shape[1] != circuit.n_inputs or weights.shape != (circuit.n_weights,):
            raise InputError(
                f"inputs and weights must have the shapes (rows, {circuit.n_inputs}) and ({circuit.n_weights},) "
                f"(got {tuple(inputs.shape)} and {tuple(weights.shape)}); pass what the circuit takes."
            )
        angles = tuple(part.detach().to("cpu", torch.float64) for part in (inputs, weights))
        if not all(part.isfinite().all() for part in angles):
            raise InputError("inputs or weights hold NaN or infinity; a chip takes finite angles in radians.")
        plan = self._planner.plan(circuit, self._chip())
        self._step, self._regions = self._calls["circuits"], len(plan.regions)
        return plan, (angles[0], angles[1])

    def _measure(self, plan: Plan, inputs: Tensor, weights: Tensor, purpose: str, fold: int = 1) -> Estimate:
        """Mitigated estimates, float64 on the processor."""
        calibration = self._calibration(plan)
        found = self._inverted(plan, calibration, inputs, weights, purpose, self._step, fold)
        if self.mitigation.affine:
            homes = plan.rows_by_region(len(inputs), self._step)
            for rows, fit in zip(homes, calibration.fits[plan.shape], strict=True):
                found.values[rows] = fit.undo(found.values[rows])
                found.errors[rows] /= fit.scale
        return found

    def _inverted(
        self,
        plan: Plan,
        calibration: Calibration,
        inputs: Tensor,
        weights: Tensor,
        purpose: str,
        step: int,
        fold: int = 1,
    ) -> Estimate:
        """Estimates with readout errors inverted, before any affine normalisation."""
        shape = len(inputs), plan.circuit.n_observables
        found = Estimate(torch.empty(shape, dtype=torch.float64), torch.empty(shape, dtype=torch.float64))
        if not len(inputs):
            return found
        templates = [fold_cz(template, fold) for at_setting in plan.templates for template in at_setting]
        answer = self._send(templates, plan.pack(inputs, weights, step), self.shots, purpose)
        homes = plan.rows_by_region(len(inputs), step)
        for place, counts in enumerate(plan.unpack(answer, len(inputs), step)):
            for region, rows in enumerate(homes):
                if not rows:
                    continue
                own = torch.stack([counts[row] for row in rows])  # (rows, 2**k)
                flips = calibration.of(plan.templates[place][region])
                each = estimate(own, plan.masks(place, region), flips, m3=self.mitigation.readout == "m3")
                columns = torch.tensor(plan.settings[place].places)
                for into, part in zip(found, each, strict=True):
                    into[torch.tensor(rows)[:, None], columns] = part
        return found

    def _calibration(self, plan: Plan) -> Calibration:
        """The calibration of a plan's regions, made now where there is none or an old one."""
        known = self._calibrations.get(plan.regions)
        if known is None or self._clock() - known.made > 60 * self.mitigation.minutes:
            known = self._calibrations[plan.regions] = self._calibrate(plan)
        if self.mitigation.affine and plan.shape not in known.fits:
            known.fits[plan.shape] = self._fit(plan, known)
        return known

    def _calibrate(self, plan: Plan) -> Calibration:
        chip = self._chip()
        flips: dict[int, Tensor] = {}
        if self.mitigation.readout != "none":

            def send(templates: Sequence[NativeTemplate], circuits: Sequence[tuple[Block, ...]]) -> Counts:
                return self._send(templates, circuits, self._calibration_shots, "calibration")

            flips = measure_readout(chip, plan.regions, send)
        name = f"{chip.id}-{len(self._names) + 1}"
        if flips or self.mitigation.affine:
            self._names.append(name)
        return Calibration(name, self._clock(), flips)

    def _fit(self, plan: Plan, calibration: Calibration) -> list[AffineFit]:
        """Measure reference circuits, each on every region."""
        count, size = self.mitigation.references, len(plan.regions)
        angles = reference_angles(plan.circuit, count, self.seed)  # (references, angles)
        free, nothing = weights_as_inputs(plan.circuit), angles.new_zeros(0)
        rows = angles.repeat_interleave(size, 0)  # as many copies in a row as there are regions: one on each
        where = self._planner.plan(free, self._chip())
        measured = self._inverted(where, calibration, rows, nothing, "calibration", step=0).values
        exact = run(free, angles, nothing)
        return [fit_affine(measured[own], exact) for own in where.rows_by_region(len(rows), 0)]

    def _send(
        self, templates: Sequence[NativeTemplate], circuits: Sequence[tuple[Block, ...]], shots: int, purpose: str
    ) -> Counts:
        # Calibrations count apart: they come when they come, and must not shift the seeds of a repeated run.
        kind = "calibrations" if purpose == "calibration" else "circuits"
        seed = self.seed ^ _CALIBRATION if purpose == "calibration" else self.seed
        seed = (seed + self._calls[kind] * _SEED_STEP) & _SEEDS
        self._calls[kind] += 1
        self._circuits += sum(map(len, circuits))
        return self.broker.run(templates, circuits, shots, purpose=purpose, seed=seed)
