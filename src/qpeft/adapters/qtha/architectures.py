"""The wirings of the bottleneck: QTHA itself, and the arms that take one of its parts away.

Each name says which parts an adapter has: tensor network, linear branch ``W_c z``, non-linear branch ``W_q q``. The
letters are those of the published code.
"""

from dataclasses import dataclass

from qpeft.errors import InputError


@dataclass(frozen=True)
class Architecture:
    """Which parts an adapter has.

    Attributes:
        name: Name used in configurations.
        tensor_network: Whether an operator stands on each side of the bottleneck.
        linear: Whether the bottleneck has the linear branch ``W_c z``.
        branch: The non-linear branch: ``"circuit"``, ``"classical"`` (a SiLU network), ``"pointwise"`` (a scalar
            function with trained scales and shifts), or ``None``.
    """

    name: str
    tensor_network: bool
    linear: bool
    branch: str | None

    def without_branch(self) -> "Architecture":
        """The same wiring with the linear branch alone, for layers that are kept classical."""
        return ARCHITECTURES["mpo"] if self.tensor_network else ARCHITECTURES["linear"]


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("mpo+quantum", tensor_network=True, linear=True, branch="circuit"),
        Architecture("mpo", tensor_network=True, linear=True, branch=None),
        Architecture("quantum", tensor_network=False, linear=True, branch="circuit"),
        Architecture("quantum_only", tensor_network=False, linear=False, branch="circuit"),
        Architecture("linear", tensor_network=False, linear=True, branch=None),
        Architecture("classical", tensor_network=False, linear=True, branch="classical"),
        Architecture("mpo+classical", tensor_network=True, linear=True, branch="classical"),
        Architecture("pointwise", tensor_network=False, linear=True, branch="pointwise"),
        Architecture("mpo+pointwise", tensor_network=True, linear=True, branch="pointwise"),
    )
}

# Letter -> (name, number of SiLU layers).
_ALIASES: dict[str, tuple[str, int | None]] = {
    "ABC": ("mpo+quantum", None),
    "AB": ("mpo", None),
    "BC": ("quantum", None),
    "C": ("quantum_only", None),
    "B": ("linear", None),
    "BD": ("classical", 2),
    "BE": ("classical", 3),
    "BF": ("classical", 4),
}


def resolve_architecture(name: str) -> tuple[str, int | None]:
    """Name of an architecture and, for the letters ``BD``, ``BE``, ``BF``, its number of SiLU layers.

    Raises:
        InputError: There is no such architecture.
    """
    if name in ARCHITECTURES:
        return name, None
    if name in _ALIASES:
        return _ALIASES[name]
    letters: dict[str, list[str]] = {}
    for letter, (target, _) in _ALIASES.items():
        letters.setdefault(target, []).append(letter)
    choices = ", ".join(
        f"{target} ({'/'.join(letters[target])})" if target in letters else target for target in ARCHITECTURES
    )
    raise InputError(f"arch must be one of {choices} (got {name!r})")
