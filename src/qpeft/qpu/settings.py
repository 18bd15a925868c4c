"""Settings of circuits on a chip, as recipes and commands give them, and the executor that they make."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpeft.errors import InputError
from qpeft.qpu.providers import PROVIDERS, open_provider
from qpeft.qpu.tokens import Tokens

if TYPE_CHECKING:
    from qpeft.qpu.executor import ChipExecutor
    from qpeft.qpu.mitigation import Mitigation
    from qpeft.qpu.policy import Policy

_CHIP_ARGUMENT = {"virtual-wukong": "chip", "origin": "chip", "qiskit": "backend", "qbraid": "device"}
_WHOLE = {"shots": 1, "seed": 0, "buffer": 0, "max_blocks": 1, "n_directions": 1}
_BUDGET = {"max_circuits": "circuits", "max_jobs": "jobs", "max_shots": "shots", "max_seconds": "seconds",
           "max_cost": "money"}  # fmt: skip
_RULES = ("twin", "shift", "spsa")


@dataclass(frozen=True)
class ExecutionSettings:
    """Where circuits run, how, and what that may cost.

    Args:
        executor: ``"virtual-wukong"``, ``"origin"``, ``"qiskit"`` or ``"qbraid"``; ``"exact"`` for none of them.
        chip: Which chip: a preset or file for the virtual chip, else the provider's name of it; ``None`` takes the
            provider's default.
        shots: Shots of every row in every measurement basis.
        seed: Of simulated chips.
        gradient: ``"twin"``, ``"shift"`` or ``"spsa"``.
        n_directions: Directions of ``"spsa"``.
        step: Step of ``"spsa"``, radians.
        tokens: ``"all"``, ``"last"``, ``"every k"`` or ``"pooled"``.
        mitigation: A :class:`~qpeft.qpu.mitigation.Mitigation`, its fields by name, or its readout alone.
        buffer: Idle qubits between two blocks.
        max_blocks: Most blocks side by side; ``None`` for as many as fit.
        min_fidelity: Least expected fidelity of a block.
        crosstalk: Of the virtual chip, and of the twin: noise of a CZ for each CZ on an adjacent coupler.
        max_circuits: Budget: most packed circuits. ``None``, here and below, sets no limit.
        max_jobs: Budget: most submissions.
        max_shots: Budget: most shots of all packed circuits.
        max_seconds: Budget: most chip seconds.
        max_cost: Budget: most money, in the currency of the provider.
        ledger: Folder of the ledger, where it is not the run folder.
        fallback: Whether a virtual chip answers, marked, once the provider was given up.
        policy: Patience with the provider, as arguments of :class:`~qpeft.qpu.policy.Policy`, ``risk`` as those of
            :class:`~qpeft.qpu.budget.Budget`: ``{"on_unknown": "resubmit", "risk": {"circuits": 400}}``.
        provider: Further settings of the provider. Never credentials.

    Raises:
        InputError: A value out of range; the message names it.

    Example:
        >>> ExecutionSettings("origin", shots=1000, max_circuits=500).budget
        {'circuits': 500}
    """

    executor: str = "exact"
    chip: str | None = None
    shots: int = 1000
    seed: int = 0
    gradient: str = "twin"
    n_directions: int = 1
    step: float = 0.1
    tokens: str = "all"
    mitigation: Any = "tensored"
    buffer: int = 0
    max_blocks: int | None = None
    min_fidelity: float = 0.0
    crosstalk: float = 0.0
    max_circuits: int | None = None
    max_jobs: int | None = None
    max_shots: int | None = None
    max_seconds: float | None = None
    max_cost: float | None = None
    ledger: str | None = None
    fallback: bool = False
    policy: Mapping[str, Any] = field(default_factory=dict)
    provider: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.executor != "exact" and self.executor not in PROVIDERS:
            raise InputError(f"unknown executor {self.executor!r}; available: exact, {', '.join(PROVIDERS)}.")
        if self.gradient not in _RULES:
            raise InputError(f"unknown gradient rule {self.gradient!r}; available: {', '.join(_RULES)}.")
        for name, least in _WHOLE.items():
            value = getattr(self, name)
            if value is None and name == "max_blocks":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name} must be a whole number of at least {least} (got {value!r}).")
        for name, most in (("min_fidelity", 1.0), ("crosstalk", 1.0), ("step", 1.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
                raise InputError(f"{name} must be a number from 0 to {most:g} (got {value!r}).")
        if self.step == 0:
            raise InputError("the step of SPSA must be above 0 (got 0); take 0.1.")
        for name in _BUDGET:
            value = getattr(self, name)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf")
            ):
                raise InputError(f"{name} must be a number of 0 or more, or nothing for no limit (got {value!r}).")
        if isinstance(self.chip, int) and not isinstance(self.chip, bool):
            object.__setattr__(self, "chip", str(self.chip))  # Wukong's name is 72, which YAML reads as a number
        for name in ("chip", "ledger"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, (str, Path)) or not str(value)):
                raise InputError(f"{name} must be a name or a path (got {value!r}).")
        if not isinstance(self.fallback, bool):
            raise InputError(f"fallback must be true or false (got {self.fallback!r}).")
        for name in ("provider", "policy"):
            value = getattr(self, name)
            if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
                raise InputError(f"the settings of the {name} must be names and values (got {value!r}).")
        _policy(self.policy)
        object.__setattr__(self, "tokens", str(Tokens.parse(self.tokens)))
        object.__setattr__(self, "mitigation", _mitigation(self.mitigation))

    @property
    def budget(self) -> dict[str, float]:
        """Limits by their names in :class:`~qpeft.qpu.budget.Budget`."""
        limits = {key: getattr(self, name) for name, key in _BUDGET.items()}
        return {key: limit for key, limit in limits.items() if limit is not None}

    @property
    def layout(self) -> dict[str, Any]:
        """Arguments of :func:`~qpeft.chips.packing.plan_layout`."""
        return {"buffer": self.buffer, "max_blocks": self.max_blocks, "min_fidelity": self.min_fidelity}

    @property
    def provider_settings(self) -> dict[str, Any]:
        """Arguments of :func:`~qpeft.qpu.providers.open_provider` beside the name."""
        found: dict[str, Any] = dict(self.provider)
        if self.chip is not None:
            found[_CHIP_ARGUMENT[self.executor]] = self.chip
        if self.executor == "virtual-wukong" and self.crosstalk:
            found["crosstalk"] = self.crosstalk
        return found


def _policy(given: Mapping[str, Any]) -> Policy:
    from qpeft.qpu.budget import Budget
    from qpeft.qpu.policy import Policy

    try:
        risk = {"risk": Budget(**given["risk"])} if given.get("risk") else {}
        return Policy(**{**given, **risk})
    except InputError:
        raise
    except TypeError as error:
        names = ", ".join(each.name for each in fields(Policy))
        raise InputError(f"policy cannot be {dict(given)!r} ({error}); its names are {names}.") from error


def _mitigation(given: Any) -> Mitigation:
    from qpeft.qpu.mitigation import Mitigation

    if isinstance(given, Mitigation):
        return given
    if isinstance(given, str):
        return Mitigation(readout=given)  # type: ignore[arg-type]  # checked there
    names = [each.name for each in fields(Mitigation)]
    if not isinstance(given, Mapping) or not set(given) <= set(names):
        raise InputError(f"mitigation must be the kind of readout mitigation, or any of {names} (got {given!r}).")
    return Mitigation(**given)


def open_executor(settings: ExecutionSettings, folder: str | Path | None = None) -> ChipExecutor:
    """Open a provider with its ledger and budget, and make an executor of it.

    Args:
        settings: What to open.
        folder: Run folder, which holds the ledger; ``settings.ledger`` comes first. Without both the ledger of a
            simulated chip is forgotten at the end.

    Raises:
        InputError: Settings that the provider does not take, or no folder where jobs are paid for.
        MissingDependencyError: The vendor's package is not installed.

    Example:
        >>> executor = open_executor(ExecutionSettings("virtual-wukong", shots=500))
        >>> executor.name, executor.shots
        ('virtual:wukong-72', 500)
        >>> executor.close()
    """
    from qpeft.qpu.broker import Broker
    from qpeft.qpu.budget import Budget
    from qpeft.qpu.executor import ChipExecutor

    if settings.executor not in PROVIDERS:
        raise InputError(
            f"the executor {settings.executor!r} is the layer's own simulator and needs not be opened; "
            f"available: {', '.join(PROVIDERS)}."
        )
    where = settings.ledger or folder
    options = settings.provider_settings
    if settings.executor == "virtual-wukong" and where is not None:
        options.setdefault("state", str(Path(where) / "virtual-chip"))  # so that its jobs outlive the process
    try:
        provider = open_provider(settings.executor, **options)
    except TypeError as error:
        raise InputError(f"the provider of {settings.executor!r} does not take these settings: {error}.") from error
    temporary = None
    if where is None:
        if provider.caps().paid:
            provider.close()
            raise InputError(
                f"{provider.name} costs money or quota, so its jobs are written down before they are sent; "
                f"give a folder for the ledger."
            )
        temporary = tempfile.TemporaryDirectory(prefix="qpeft-ledger-")
        where = temporary.name
    fallback = None
    if settings.fallback:
        fallback = open_provider("virtual-wukong", chip=provider.snapshot(), crosstalk=settings.crosstalk)
    # A simulated chip is in this process: nobody minds how often it is asked.
    patience = {} if provider.caps().paid else {"rate": 1e6, "in_flight": 1}
    broker = Broker(
        provider,
        where,
        budget=Budget(**settings.budget),  # type: ignore[arg-type]  # whole numbers where they are counts
        policy=_policy(patience | dict(settings.policy)),
        opened=(settings.executor, options),
        fallback=fallback,
    )
    return ChipExecutor(
        broker,
        shots=settings.shots,
        layout=settings.layout,
        mitigation=settings.mitigation,
        seed=settings.seed,
        crosstalk=settings.crosstalk,
        temporary=temporary,
    )
