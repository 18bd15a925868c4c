"""How a submission becomes Qiskit's units of work, and how answers are kept so that they can be read without Qiskit.

A PUB is one circuit with an array of parameter values ``(rows, P)``. All circuits of a submission that stand on the
same templates are rows of one PUB. On a chip, the blocks of a row run side by side; a simulator of noise without
crosstalk runs every template by itself, which gives the same distribution and costs 2**k instead of 2**(sum of k).

An answer is kept as one NumPy archive: every shot of every register, packed into bytes ``(rows, shots, bytes)`` as
they came, and a manifest that says which registers there are.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qpeft.qpu.protocol import Counts, ProviderError, RawAnswer, Submission

_FORMAT = 1


@dataclass(frozen=True)
class Pub:
    """One circuit with many rows of angles.

    Args:
        templates: The templates that stand side by side, one classical register each.
        rows: Of every row and register: which circuit of the submission it is, and which block of that circuit.
        values: Angles ``(rows, P)``, those of the first register first.
    """

    templates: tuple[int, ...]
    rows: tuple[tuple[tuple[int, int], ...], ...]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Register:
    """All shots of one classical register: bytes ``(rows, shots, ceil(bits / 8))``, most significant byte first."""

    bits: int
    data: NDArray[np.uint8]


def plan_pubs(submission: Submission, side_by_side: bool) -> list[Pub]:
    """Group the circuits of a submission by what they stand on, in the order in which each is met first.

    Args:
        submission: What to run.
        side_by_side: Whether blocks of a circuit stay together; else every block becomes a row of its own.
    """
    groups: dict[tuple[int, ...], list[tuple[tuple[int, int], ...]]] = {}
    for c, blocks in enumerate(submission.circuits):
        places = tuple((c, b) for b in range(len(blocks)))
        for row in [places] if side_by_side else [(place,) for place in places]:
            groups.setdefault(tuple(blocks[b].template for _, b in row), []).append(row)
    pubs = []
    for templates, rows in groups.items():
        angles = [[a for c, b in row for a in submission.circuits[c][b].angles] for row in rows]
        width = sum(submission.templates[t].circuit.n_inputs for t in templates)
        if any(len(row) != width for row in angles):
            raise ProviderError(
                f"a circuit on templates {templates} has {sorted({len(row) for row in angles})} angles, not {width}; "
                f"give each block the native angles of its template."
            )
        pubs.append(Pub(templates, tuple(rows), np.array(angles, dtype=np.float64).reshape(len(rows), width)))
    return pubs


def write_answer(registers: Sequence[Mapping[str, Register]], side_by_side: bool) -> bytes:
    """Keep the registers of every PUB, in order, with their names."""
    manifest = {
        "format": _FORMAT,
        "side_by_side": side_by_side,
        "pubs": [{name: register.bits for name, register in pub.items()} for pub in registers],
    }
    arrays = {f"{p}/{name}": register.data for p, pub in enumerate(registers) for name, register in pub.items()}
    file = io.BytesIO()
    np.savez_compressed(file, manifest=np.array(json.dumps(manifest)), **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def read_answer(answer: RawAnswer, submission: Submission) -> Counts:
    """Counts of every circuit and block from what :func:`write_answer` kept.

    Raises:
        ProviderError: The answer is damaged, or belongs to another submission: registers, rows, shots or bits differ.
    """
    wrong = f"the answer of job {answer.job} cannot be used: "
    try:
        with np.load(io.BytesIO(answer.data), allow_pickle=False) as archive:
            manifest = json.loads(str(archive["manifest"]))
            kept = [
                {name: Register(int(bits), archive[f"{p}/{name}"]) for name, bits in pub.items()}
                for p, pub in enumerate(manifest["pubs"])
            ]
            known, side_by_side = manifest["format"] == _FORMAT, bool(manifest["side_by_side"])
    except Exception as error:  # whatever damage makes of the readers of archive, array and manifest
        raise ProviderError(f"{wrong}it is damaged ({type(error).__name__}); fetch it again.") from None
    if not known:
        raise ProviderError(f"{wrong}its format is not {_FORMAT}; read it with the version that wrote it.")
    pubs = plan_pubs(submission, side_by_side)
    if len(pubs) != len(kept):
        raise ProviderError(f"{wrong}it holds {len(kept)} groups of circuits, {len(pubs)} were sent.")
    found: dict[tuple[int, int], Tensor] = {}
    for p, (pub, registers) in enumerate(zip(pubs, kept, strict=True)):
        names = register_names(pub)
        if set(registers) != set(names):
            raise ProviderError(f"{wrong}group {p} holds the registers {sorted(registers)}, not {names}.")
        for r, name in enumerate(names):
            bits = len(submission.templates[pub.templates[r]].qubits)
            counts = _histograms(registers[name], (len(pub.rows), submission.shots), bits, wrong)
            found.update({row[r]: counts[i] for i, row in enumerate(pub.rows)})
    return [[found[c, b] for b in range(len(blocks))] for c, blocks in enumerate(submission.circuits)]


def register_names(pub: Pub) -> list[str]:
    """Names of a PUB's classical registers, one a block."""
    return [f"b{r}" for r in range(len(pub.templates))]


def _histograms(register: Register, shape: tuple[int, int], bits: int, wrong: str) -> Tensor:
    """How often each outcome came: ``(rows, 2**bits)``, int64."""
    data = register.data
    expected = (*shape, (bits + 7) // 8)
    if register.bits != bits or data.dtype != np.uint8 or data.shape != expected:
        raise ProviderError(
            f"{wrong}a register holds {register.bits} bits as {data.dtype} {data.shape}, "
            f"not {bits} bits as uint8 {expected} (rows, shots, bytes)."
        )
    index = np.zeros(shape, dtype=np.int64)
    for byte in range(expected[2]):
        index = (index << 8) | data[:, :, byte]  # (rows, shots)
    if index.size and int(index.max()) >= 2**bits:
        raise ProviderError(f"{wrong}a register of {bits} bits holds the number {int(index.max())}.")
    index += np.arange(shape[0], dtype=np.int64)[:, None] << bits
    counts = np.bincount(index.ravel(), minlength=shape[0] << bits).reshape(shape[0], 2**bits)
    return torch.from_numpy(counts.astype(np.int64))
