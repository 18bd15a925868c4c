"""The quantum layer: a circuit whose weights are trained, as a torch module.

``layer(x) = (<P_1>, ..., <P_m>)`` of the state ``U(x, weight)|0...0>``. The module joins a circuit (what is computed),
an executor (where it is computed) and a gradient rule (how it is differentiated); adapters hold such layers and never
know about any of them.

================  =========================================  ==============================================
executor          value                                      gradient
================  =========================================  ==============================================
``"exact"``       expectations of the pure state             ``"adjoint"``: exact
``"noisy"``       expectations with noise and readout        ``"adjoint"``: exact
                  errors, exact
``"shots"``       estimates from shots, with or without      ``"shift"``: from shots too, by the parameter-shift
                  noise                                      rule, without bias; or ``"adjoint"``: exact, that
                                                             is what more and more shots lead to
================  =========================================  ==============================================
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from qpeft.circuits import Circuit
from qpeft.errors import InputError
from qpeft.execution import Execution, Executor, ModelledExecutor, OnExecutor
from qpeft.gradients import shift_gradient
from qpeft.qpu.providers import PROVIDERS
from qpeft.qpu.settings import ExecutionSettings, open_executor
from qpeft.simulators import NoiseModel, run, run_noisy, run_shots

AngleInit = Literal["uniform", "normal", "zeros"]
GradientRule = Literal["adjoint", "shift", "spsa", "twin"]

_RULES: dict[str, tuple[GradientRule, ...]] = {  # the first is the default
    "exact": ("adjoint",),
    "noisy": ("adjoint",),
    "shots": ("shift", "adjoint"),
}
_NORMAL_STD = 0.1

_SEEDS = 2**63 - 1
_SEED_STEP = 0x1E3779B97F4A7C15  # far apart and odd, so that no two calls share a seed
_BACKWARD = 0x2545F4914F6CDD1D


class QuantumLayer(nn.Module):
    """Expectations of a parameterised circuit, differentiable for inputs and weights.

    The angles are one float32 parameter called ``weight``, in the order in which the gates stand in the circuit.

    Args:
        circuit: The circuit; its inputs are the layer's inputs, its observables the outputs.
        executor: Where the circuit runs: ``"exact"`` (batched simulation without noise), ``"noisy"`` (exact
            expectations with noise), ``"shots"`` (estimates from shots), an executor such as
            :class:`~qpeft.qpu.executor.ChipExecutor`, or the name of one that is opened with ``shots`` and ``seed``.
        init: How :meth:`reset_parameters` draws the angles: ``"uniform"`` from [-π, π), ``"normal"`` with standard
            deviation 0.1, ``"zeros"``. Draws come from torch's default generator, so ``torch.manual_seed`` fixes them.
        noise: Noise of gates and readout; needed by ``"noisy"``, optional for ``"shots"``.
        shots: Shots of every sample, for ``"shots"``.
        seed: Where shots come from. ``None``: every call draws a seed from torch's default generator, as dropout does,
            so that ``torch.manual_seed`` fixes all shots and gradient checkpointing repeats those of the forward pass.
            A number: the n-th call of this layer uses the n-th seed that follows from it, whatever else happens; n is
            kept in the buffer ``calls``, which is saved with the layer. The backward pass draws shots of its own.
        marginals: For ``"shots"``: draw every output by itself (much faster; outputs of a sample are independent).
        gradient: ``"adjoint"`` or ``"shift"``, and for executors beside the simulator ``"twin"``, ``"shift"`` or
            ``"spsa"``; ``None`` takes the first that the executor offers.

    Attributes:
        execution: What runs in place of the layer's own simulator, or ``None``. It is no part of the state, and may be
            switched at any time (:func:`qpeft.adapters.execution.run_on`).

    Raises:
        InputError: Unknown executor, initialiser or gradient rule, or options that do not go with the executor.

    Shape:
        ``(..., n_inputs) -> (..., n_observables)``. Computed in float32 (float64 for float64 inputs) also under
        autocast; the result has the dtype of the inputs. With ``"exact"`` a NaN or infinite input makes the outputs of
        its own sample NaN, as in other layers.

    Example:
        >>> from qpeft.circuits import qtha_block
        >>> layer = QuantumLayer(qtha_block(n_qubits=4, n_layers=1))
        >>> layer(torch.zeros(2, 3, 4, dtype=torch.bfloat16)).shape, layer.weight.shape
        (torch.Size([2, 3, 4]), torch.Size([16]))
        >>> noise = NoiseModel.uniform(depolarizing=0.01, readout=0.03)
        >>> QuantumLayer(qtha_block(n_qubits=2, n_layers=1), executor="shots", shots=1000, seed=0, noise=noise)
        QuantumLayer(n_qubits=2, n_inputs=2, n_weights=8, n_observables=2, executor='shots', shots=1000, seed=0, \
noise=True, gradient='shift')
    """

    calls: Tensor

    def __init__(
        self,
        circuit: Circuit,
        executor: str | Executor = "exact",
        init: AngleInit = "uniform",
        *,
        noise: NoiseModel | None = None,
        shots: int | None = None,
        seed: int | None = None,
        marginals: bool = False,
        gradient: GradientRule | None = None,
    ) -> None:
        super().__init__()
        self.execution: Execution | None = None
        if not isinstance(executor, str) or executor in PROVIDERS:
            if noise is not None or marginals:
                raise InputError("an executor brings its own noise; leave out noise and marginals.")
            self.execution = _elsewhere(executor, gradient, shots, seed)
            executor, gradient, shots, seed = "exact", None, None, None
        if executor not in _RULES:
            raise InputError(f"unknown executor {executor!r}; available: {', '.join([*sorted(_RULES), *PROVIDERS])}.")
        if init not in get_args(AngleInit):
            raise InputError(
                f"unknown initialiser {init!r} of the angles; available: {', '.join(get_args(AngleInit))}."
            )
        if gradient is not None and gradient not in _RULES[executor]:
            raise InputError(
                f"unknown gradient rule {gradient!r} of the executor {executor!r}; "
                f"available: {', '.join(_RULES[executor])}."
            )
        if executor == "noisy" and noise is None:
            raise InputError("the executor 'noisy' needs noise=NoiseModel(...); or use 'exact'.")
        if executor == "exact" and noise is not None:
            raise InputError("the executor 'exact' knows no noise; use executor='noisy' or 'shots'.")
        if executor == "shots":
            if isinstance(shots, bool) or not isinstance(shots, int) or shots < 1:
                raise InputError(f"the executor 'shots' needs shots=, a whole number of at least 1 (got {shots!r}).")
            if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= _SEEDS):
                raise InputError(f"seed must be a whole number from 0 to 2**63 - 1, or None (got {seed!r}).")
        elif shots is not None or seed is not None or marginals:
            raise InputError(f"shots, seed and marginals do nothing with the executor {executor!r}; use 'shots'.")
        self.circuit = circuit
        self.executor = executor
        self.init = init
        self.noise = None if noise is None else noise.reduce(circuit)
        self.shots = shots
        self.seed = seed
        self.marginals = marginals
        self.gradient: GradientRule = gradient or _RULES[executor][0]
        self.weight = nn.Parameter(torch.empty(circuit.n_weights, dtype=torch.float32))
        if seed is not None:
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the angles anew."""
        if self.init == "uniform":
            nn.init.uniform_(self.weight, -math.pi, math.pi)
        elif self.init == "normal":
            nn.init.normal_(self.weight, std=_NORMAL_STD)
        else:
            nn.init.zeros_(self.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """``(..., n_inputs) -> (..., n_observables)``."""
        if inputs.shape[-1:] != (self.circuit.n_inputs,):
            raise InputError(
                f"the last dimension of the inputs must be {self.circuit.n_inputs} (got shape {tuple(inputs.shape)}); "
                f"the circuit takes {self.circuit.n_inputs} inputs."
            )
        if self.execution is not None:
            return self.execution(self.circuit, inputs, self.weight, self._execute).to(inputs.dtype)
        batch = inputs.shape[:-1]
        flat = inputs.reshape(math.prod(batch), self.circuit.n_inputs)  # (samples, n_inputs)
        outputs = self._execute(flat)
        return outputs.view(*batch, self.circuit.n_observables).to(inputs.dtype)

    def _execute(self, inputs: Tensor) -> Tensor:
        if self.executor == "exact":
            return run(self.circuit, inputs, self.weight, check=False)
        if self.executor == "noisy":
            assert self.noise is not None
            return run_noisy(self.circuit, inputs, self.weight, self.noise)
        assert self.shots is not None
        if inputs.dtype != torch.float64:
            inputs = inputs.float()
        noise = "" if self.noise is None else self.noise.key
        options = (self.circuit.key, noise, self.shots, self.marginals, self.gradient)
        return torch.ops.qpeft.shots(inputs, self.weight, self._next_seed(), *options)

    def _next_seed(self) -> Tensor:
        if self.seed is None:
            return torch.randint(_SEEDS, (), device="cpu")
        seed = (self.calls * _SEED_STEP + self.seed) & _SEEDS
        self.calls += 1
        return seed

    def extra_repr(self) -> str:
        c = self.circuit
        text = (
            f"n_qubits={c.n_qubits}, n_inputs={c.n_inputs}, n_weights={c.n_weights}, "
            f"n_observables={c.n_observables}, executor={self.executor!r}"
        )
        if self.executor == "shots":
            text += f", shots={self.shots}, seed={self.seed}"
        if self.noise is not None:
            text += ", noise=True"
        if self.execution is not None:
            return f"{text}, execution={self.execution!r}"
        return text if self.executor == "exact" else f"{text}, gradient={self.gradient!r}"


def _elsewhere(
    executor: str | Executor, gradient: GradientRule | None, shots: int | None, seed: int | None
) -> OnExecutor:
    """What runs circuits on an executor, which is opened where it is given by name."""
    if isinstance(executor, str):
        settings = ExecutionSettings(
            executor, shots=1000 if shots is None else shots, seed=0 if seed is None else seed
        )
        executor = open_executor(settings)
    elif shots is not None or seed is not None:
        raise InputError("shots and seed are the executor's own; leave them out.")
    if gradient is None:
        gradient = "twin" if isinstance(executor, ModelledExecutor) else "shift"
    return OnExecutor(executor, gradient)  # type: ignore[arg-type]  # checked there


def _shots(
    inputs: Tensor,
    weights: Tensor,
    seed: Tensor,
    circuit: str,
    noise: str,
    shots: int,
    marginals: bool,
    gradient: str,
) -> Tensor:
    model = NoiseModel.from_key(noise) if noise else None
    return run_shots(Circuit.from_key(circuit), inputs, weights, shots, seed, model, marginals)


def _shots_backward(
    cotangent: Tensor,
    inputs: Tensor,
    weights: Tensor,
    seed: Tensor,
    circuit: str,
    noise: str,
    shots: int,
    marginals: bool,
    gradient: str,
) -> tuple[Tensor, Tensor]:
    if gradient == "adjoint":
        if noise:
            return torch.ops.qpeft.noisy_expectations_backward(cotangent, inputs, weights, circuit, noise)
        return torch.ops.qpeft.expectations_backward(cotangent, inputs, weights, circuit, True)
    model = NoiseModel.from_key(noise) if noise else None

    def evaluate(shifted: Circuit, angles: Tensor, nothing: Tensor) -> Tensor:
        # Other shots than those of the forward pass, on which the cotangent depends: products stay without bias.
        return run_shots(shifted, angles, nothing, shots, seed ^ _BACKWARD, model, marginals)

    found = shift_gradient(Circuit.from_key(circuit), inputs, weights, evaluate, cotangent)
    return found.inputs, found.weights.to(weights.dtype)


_shots_op = torch.library.custom_op("qpeft::shots", _shots, mutates_args=())
_shots_backward_op = torch.library.custom_op("qpeft::shots_backward", _shots_backward, mutates_args=())


@_shots_op.register_fake
def _(inputs: Tensor, weights: Tensor, seed: Tensor, circuit: str, *options: Any) -> Tensor:
    return inputs.new_empty(inputs.shape[0], Circuit.from_key(circuit).n_observables)


@_shots_backward_op.register_fake
def _(cotangent: Tensor, inputs: Tensor, weights: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(inputs, memory_format=torch.contiguous_format), torch.empty_like(weights)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.options = inputs[3:]
    ctx.save_for_backward(*inputs[:3])


def _differentiate(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    back = torch.ops.qpeft.shots_backward(cotangent, *ctx.saved_tensors, *ctx.options)
    return *back, *(None for _ in range(6))


_shots_op.register_autograd(_differentiate, setup_context=_keep)
