"""How circuits, templates and counts are written into a ledger, and the keys that tell whether two are the same.

Everything that is kept can be read again without the vendor's package: a template as the key of its circuit and its
qubits, angles as whole multiples of 1e-8 rad (the precision of OriginIR, and of every key), counts as whole numbers.
A key is the SHA-256 of such bytes, so equal questions have equal keys on every machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from qpeft.chips import NativeTemplate
from qpeft.circuits import Circuit
from qpeft.errors import InputError
from qpeft.qpu.protocol import Block

PRECISION = 8
"""Decimals of an angle, in radians."""
_STEPS = 10**PRECISION
_LARGEST = 1e9  # radians; beyond it a double has fewer decimals than are kept

Placed = tuple[Block, ...]


def digest(*parts: bytes | str) -> str:
    """SHA-256 of parts, told apart by their lengths, as 64 hexadecimal digits."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()


def canonical(value: Any) -> str:
    """JSON text that is equal for equal values.

    Raises:
        InputError: Something in it is not a JSON value.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"settings of a provider must be JSON values ({error}); use numbers, texts, lists."
        ) from error


def _plain(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is none")


def write_template(template: NativeTemplate) -> str:
    """A template as JSON text."""
    return canonical({"circuit": template.circuit.key, "qubits": template.qubits, "readout": template.readout})


def read_template(text: str) -> NativeTemplate:
    """A template from :func:`write_template`; it can parse answers, but cannot be bound to new inputs."""
    record = json.loads(text)
    return NativeTemplate(
        Circuit.from_key(record["circuit"]), tuple(record["qubits"]), tuple(record["readout"]), bind=_unbound
    )


def _unbound(inputs: Tensor, weights: Tensor) -> Tensor:
    raise InputError("a template read from a ledger has no way from inputs to angles; compile the circuit again.")


def write_circuit(circuit: Sequence[Block]) -> bytes:
    """Blocks of a circuit, angles rounded: number of blocks, bytes of an angle, template and number of angles of each
    block, all angles.

    Raises:
        InputError: An angle that is not finite.
    """
    angles = numpy.fromiter(chain.from_iterable(block.angles for block in circuit), "<f8")
    if not (numpy.abs(angles) < _LARGEST).all():  # NaN is not smaller either
        raise InputError(f"an angle is no angle: {angles.tolist()}; check the inputs and weights.")
    steps = numpy.rint(angles * _STEPS).astype("<i8")
    width = 4 if (numpy.abs(steps) < 2**31).all() else 8
    head = [len(circuit), width, *(number for block in circuit for number in (block.template, len(block.angles)))]
    return numpy.array(head, "<u4").tobytes() + steps.astype(f"<i{width}").tobytes()


def read_circuit(data: bytes) -> Placed:
    """Blocks from :func:`write_circuit`."""
    n_blocks, width = numpy.frombuffer(data, "<u4", 2).tolist()
    head = numpy.frombuffer(data, "<u4", 2 * n_blocks, offset=8).tolist()
    angles = (numpy.frombuffer(data, f"<i{width}", offset=8 + 8 * n_blocks) / _STEPS).tolist()
    blocks, start = [], 0
    for template, n_angles in zip(head[::2], head[1::2], strict=True):
        blocks.append(Block(template, tuple(angles[start : start + n_angles])))
        start += n_angles
    return tuple(blocks)


def write_counts(counts: Sequence[Tensor]) -> bytes:
    """Counts of the blocks of one circuit: number of blocks, bytes of a number, sizes of the blocks, all counts."""
    flat = torch.cat(list(counts)).numpy()
    width = 2 if flat.max() < 2**16 else 4
    head = numpy.array([len(counts), width, *(block.numel() for block in counts)], "<u4").tobytes()
    return head + flat.astype(f"<u{width}").tobytes()


def read_counts(data: bytes) -> list[Tensor]:
    """Counts from :func:`write_counts`, int64."""
    n_blocks, width = numpy.frombuffer(data, "<u4", 2).tolist()
    sizes = numpy.frombuffer(data, "<u4", n_blocks, offset=8).tolist()
    flat = numpy.frombuffer(data, f"<u{width}", offset=8 + 4 * n_blocks)
    return list(torch.from_numpy(flat.astype("int64")).split(sizes))


_SECRET_NAME = re.compile(r"(key|token|secret|password|passwd|credentials?|auth)$", re.IGNORECASE)
_LOGIN = re.compile(r"//[^/@\s]+:[^/@\s]+@")
_SHORTEST_SECRET = 6


def _secrets() -> list[str]:
    """Values of the environment that look like credentials by their names, longest first."""
    found = {v for k, v in os.environ.items() if _SECRET_NAME.search(k) and len(v) >= _SHORTEST_SECRET}
    return sorted(found, key=len, reverse=True)


def scrubbed(text: str) -> str:
    """A text without any credential that stands in the environment."""
    for secret in _secrets():
        text = text.replace(secret, "***")
    return text


def check_no_credentials(settings: dict[str, Any]) -> None:
    """Refuse settings that hold a credential: they are kept in the ledger.

    Raises:
        InputError: A name that says so, or a value that an environment variable for credentials holds.
    """
    for name, value in settings.items():
        if _SECRET_NAME.search(name) and value:
            raise InputError(f"the setting {name!r} looks like a credential: give it in the environment, not here.")
        if isinstance(value, dict):
            check_no_credentials(value)
    text = canonical(settings)
    if scrubbed(text) != text or _LOGIN.search(text):
        raise InputError("a setting holds a credential: leave it out and give it in the environment.")
