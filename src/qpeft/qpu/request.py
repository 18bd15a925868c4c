"""What one call of the broker asks for: checked, rounded, its equal circuits found, its key."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from qpeft.chips import NativeTemplate
from qpeft.errors import InputError
from qpeft.qpu.protocol import Block, Caps, Counts
from qpeft.qpu.reading import Batch
from qpeft.qpu.records import canonical, check_no_credentials, digest, write_circuit, write_template

SENT_ONCE = frozenset({"evaluation", "calibration"})
"""Purposes for which equal circuits of a batch are sent once. For others each copy gets shots of its own."""


@dataclass(frozen=True)
class Request:
    """A batch before it has a number.

    Args:
        content: Key without the count of how often it was asked.
        purpose: What for.
        shots: Of every circuit.
        seed: For simulated chips; 0 where the provider has no use for it.
        options: Of the provider.
        template_texts: Templates as the ledger keeps them.
        template_digests: Their keys.
        circuits: Circuits that are sent, as the ledger keeps them, each with the number of times it was asked for.
        places: Of every circuit that was asked for, which of ``circuits`` answers it.
    """

    content: str
    purpose: str
    shots: int
    seed: int
    options: dict[str, Any]
    template_texts: tuple[str, ...]
    template_digests: tuple[str, ...]
    circuits: tuple[tuple[bytes, int], ...]
    places: tuple[int, ...]

    @classmethod
    def of(
        cls,
        templates: Sequence[NativeTemplate],
        circuits: Iterable[Sequence[Block]],
        shots: int,
        purpose: str,
        seed: int,
        options: dict[str, Any],
        caps: Caps,
        provider: str,
        chip: str,
    ) -> Request:
        """Check and sort a call.

        Raises:
            InputError: Shots out of range, packed circuits where the provider cannot, blocks on the same qubits, a
                wrong number of angles, or options that are no JSON values or hold a credential.
        """
        if isinstance(shots, bool) or not isinstance(shots, int) or not caps.min_shots <= shots <= caps.max_shots:
            raise InputError(
                f"{provider} takes {caps.min_shots} to {caps.max_shots} shots (got {shots!r}); choose a whole number "
                "between."
            )
        if not purpose:
            raise InputError("a batch needs a purpose, such as 'evaluation'.")
        check_no_credentials(options)
        asked = list(circuits)
        _check_places(templates, asked, caps, provider)
        texts = tuple(write_template(template) for template in templates)
        digests = tuple(digest(text) for text in texts)
        data = [write_circuit(circuit) for circuit in asked]
        seed = int(seed) if caps.seeded else 0
        content = digest(*digests, canonical([shots, provider, chip, options, purpose, seed]), *data)
        unique: dict[bytes | int, int] = {}
        copies: list[int] = []
        chosen: list[bytes] = []
        places: list[int] = []
        for number, circuit in enumerate(data):
            place = unique.setdefault(circuit if purpose in SENT_ONCE else number, len(chosen))
            if place == len(chosen):
                chosen.append(circuit)
                copies.append(0)
            copies[place] += 1
            places.append(place)
        return cls(
            content,
            purpose,
            shots,
            seed,
            options,
            texts,
            digests,
            tuple(zip(chosen, copies, strict=True)),
            tuple(places),
        )

    def batch(self, occurrence: int) -> Batch:
        """The batch, asked for the ``occurrence``-th time (from 0) in this run."""
        key = digest(self.content, str(occurrence))
        return Batch(0, key, self.purpose, occurrence, self.shots, self.seed, self.options, self.template_digests)

    def spread(self, counts: Counts) -> Counts:
        """Counts of what was sent -> counts of what was asked for."""
        return [list(counts[place]) for place in self.places]

    @staticmethod
    def seed_of(key: str, positions: Sequence[int]) -> int:
        """Seed of a job, from the key of its batch and its circuits alone: a job that is sent again gives the same."""
        return int(digest(key, canonical(list(positions)))[:15], 16)


def _check_places(
    templates: Sequence[NativeTemplate], circuits: Sequence[Sequence[Block]], caps: Caps, provider: str
) -> None:
    """Blocks stand on disjoint qubits, each with the angles that its template takes."""
    n_angles = [template.circuit.n_inputs for template in templates]
    seen: set[tuple[int, ...]] = set()
    for position, circuit in enumerate(circuits):
        if not circuit:
            raise InputError(f"circuit {position} has no blocks; give it at least one.")
        for block in circuit:
            if not 0 <= block.template < len(templates):
                raise InputError(
                    f"circuit {position} uses template {block.template} of {len(templates)}; count from 0."
                )
            if len(block.angles) != n_angles[block.template]:
                raise InputError(
                    f"circuit {position} gives {len(block.angles)} angles to a template that takes "
                    f"{n_angles[block.template]}; bind it with NativeTemplate.angles."
                )
        together = tuple(block.template for block in circuit)
        if together in seen:
            continue
        seen.add(together)
        if len(together) > 1 and not caps.packs:
            raise InputError(f"{provider} runs one block at a time (circuit {position} has {len(together)}).")
        qubits = [qubit for template in together for qubit in templates[template].qubits]
        if len(set(qubits)) != len(qubits):
            raise InputError(f"circuit {position} has two blocks on the same qubit; choose disjoint regions.")
