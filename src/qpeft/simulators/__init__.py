"""Expectations of a circuit for a batch of inputs: exact (:func:`run`), with noise, and estimated from shots."""

from qpeft.simulators.density import run_noisy
from qpeft.simulators.exact import MAX_QUBITS, run
from qpeft.simulators.noise import (
    AmplitudeDamping,
    Depolarizing,
    GateNoise,
    NoiseModel,
    PhaseDamping,
    ReadoutError,
    ThermalRelaxation,
)
from qpeft.simulators.outcomes import probabilities
from qpeft.simulators.sampling import bit_strings, noisy_probabilities, run_shots, sample

__all__ = [
    "MAX_QUBITS",
    "AmplitudeDamping",
    "Depolarizing",
    "GateNoise",
    "NoiseModel",
    "PhaseDamping",
    "ReadoutError",
    "ThermalRelaxation",
    "bit_strings",
    "noisy_probabilities",
    "probabilities",
    "run",
    "run_noisy",
    "run_shots",
    "sample",
]
