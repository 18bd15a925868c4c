"""Configuration of a QTHA adapter, saved as ``adapter_config.json``."""

import logging
from dataclasses import dataclass, field
from typing import Any, Literal

from packaging.version import Version
from peft import PeftConfig

from qpeft.adapters.qtha.architectures import ARCHITECTURES, Architecture, resolve_architecture
from qpeft.adapters.registry import QPeftType
from qpeft.errors import InputError
from qpeft.version import __version__

logger = logging.getLogger(__name__)

# Raised when saved adapters change in a way that an older version would misread.
FORMAT_VERSION = 1

MAX_QUBITS = 20

_CHOICES = {
    "fusion": ("linear", "product"),
    "input_scale": ("none", "tanh", "pi_tanh"),
    "angle_init": ("uniform", "normal", "zeros"),
    "gate_order": ("published", "older"),
    "entanglement": ("ring", "none"),
    "pointwise": ("silu", "sin", "tanh"),
    "executor": ("exact",),
}


@dataclass
class QTHAConfig(PeftConfig):
    """A Quantum Tensor Hybrid Adapter (arXiv:2503.12790) on linear layers.

    For a frozen layer ``W0`` from ``d_in`` to ``d_out`` and a token's activation ``x``:

        z  = A MPO_A x                       d_in -> inner_features -> r
        q  = <Z_i> of circuit(scale(z))      r qubits, n_layers layers
        u  = W_c z + W_q q                   (fusion "linear"; "product" is the elementwise product of both)
        y  = W0 x + (alpha / r) MPO_B B u    r -> inner_features -> d_out

    The adapter adds exactly zero before the first training step.

    Args:
        r (`int`, *optional*, defaults to 8):
            Width of the bottleneck. With a circuit one qubit is used per rank, so at most 20.
        alpha (`float`, *optional*):
            Scale: the adapter's output is multiplied by ``alpha / r``. Defaults to ``2 r``.
        n_layers (`int`, *optional*, defaults to 1):
            Layers of the circuit, each of which encodes the input again, or of a pointwise branch. ``None`` means
            ``r``, as published.
        arch (`str`, *optional*, defaults to `"mpo+quantum"`):
            Which parts the adapter has: `"mpo+quantum"` (ABC), `"mpo"` (AB), `"quantum"` (BC), `"quantum_only"` (C),
            `"linear"` (B), `"classical"` (BD, BE, BF: the circuit replaced by a SiLU network of 2, 3, 4 layers),
            `"mpo+classical"` (that with the tensor network), `"pointwise"` and `"mpo+pointwise"` (the circuit replaced
            by a function of each number alone, with as many trained numbers as the circuit has angles).
        bond_dim (`int`, *optional*, defaults to 8):
            Bond dimension of the tensor networks.
        inner_features (`int`, *optional*, defaults to 256):
            Width between a tensor network and the bottleneck.
        factors (`dict[str, list[int]]`, *optional*):
            Modes to use for a layer width instead of the chosen ones, as in `{"576": [9, 4, 4, 4]}`. A product larger
            than the width means padding.
        fusion (`str`, *optional*, defaults to `"linear"`):
            How the linear and the other branch are joined: `"linear"` (their sum) or `"product"` (elementwise).
        input_scale (`str`, *optional*, defaults to `"none"`):
            Map from the bottleneck to the circuit's angles in radians, or to the input of a pointwise branch:
            `"none"`, `"tanh"`, or `"pi_tanh"` (pi tanh z).
        angle_init (`str`, *optional*, defaults to `"uniform"`):
            Start of the trained angles: `"uniform"` in (-pi, pi), `"normal"` with deviation 0.1, or `"zeros"`.
        gate_order (`str`, *optional*, defaults to `"published"`):
            Order of the gates in a layer of the circuit: `"published"`, or `"older"` (before June 2025).
        entanglement (`str`, *optional*, defaults to `"ring"`):
            `"ring"`, as published, or `"none"`: every CRZ becomes an RZ of the same angle on its target.
        classical_layers (`int`, *optional*):
            Linear layers of the SiLU network of arch `"classical"` and `"mpo+classical"`, 2 to 4. Defaults to 2.
        pointwise (`str`, *optional*, defaults to `"silu"`):
            The function f of arch `"pointwise"` and `"mpo+pointwise"`, whose `n_layers` layers are `a f(b q + c) + d`
            with a, b, c, d of length r: `"silu"`, `"tanh"`, or `"sin"`.
        n_classical_first (`int`, *optional*, defaults to 0):
            Number of decoder layers at the input side whose adapters leave the circuit out.
        n_classical_last (`int`, *optional*, defaults to 0):
            The same at the output side.
        executor (`str`, *optional*, defaults to `"exact"`):
            What evaluates the circuits.
        dropout (`float`, *optional*, defaults to 0.0):
            Dropout on the adapter's input.
        target_modules (`list[str]` or `str`, *optional*):
            Names of the modules to adapt, a regular expression, or `"all-linear"`. Defaults to those peft's LoRA uses.
        exclude_modules (`list[str]` or `str`, *optional*):
            Names of modules not to adapt, or a regular expression.
        fan_in_fan_out (`bool`, *optional*, defaults to `False`):
            Whether the layer stores its weight as (inputs, outputs). Set by itself for GPT-2's `Conv1D`.
        init_weights (`bool`, *optional*, defaults to `True`):
            Whether the adapter starts at zero. `False` gives a random adapter, for tests.
        modules_to_save (`list[str]`, *optional*):
            Further modules to train and save whole.
        layers_to_transform (`list[int]` or `int`, *optional*):
            Indices of the layers to adapt.
        layers_pattern (`list[str]` or `str`, *optional*):
            Name of the list of layers, where it is not a common one.
        trainable_token_indices (`list[int]` or `dict[str, list[int]]`, *optional*):
            Tokens whose embeddings are trained.
        target_parameters (`list[str]`, *optional*):
            Not supported; present so that it is refused with a sentence.
        library_name (`str`):
            Package that reads this file.
        qpeft_version (`str`, *optional*):
            Version of that package which made the adapter.
        format_version (`int`):
            Version of the format of the saved adapter.

    Raises:
        InputError: A value is out of range, or the adapter was saved in a newer format.

    Example:
        >>> from qpeft import QTHAConfig
        >>> config = QTHAConfig(r=8, target_modules=["q_proj", "v_proj"])
        >>> config.scaling
        2.0
    """

    r: int = field(default=8, metadata={"help": "Width of the bottleneck; one qubit per rank."})
    alpha: float | None = field(default=None, metadata={"help": "Scale alpha / r; defaults to 2 r."})
    n_layers: int | None = field(default=1, metadata={"help": "Layers of the branch; None means r."})
    arch: str = field(default="mpo+quantum", metadata={"help": "Which parts the adapter has."})
    bond_dim: int = field(default=8, metadata={"help": "Bond dimension of the tensor networks."})
    inner_features: int = field(default=256, metadata={"help": "Width between tensor network and bottleneck."})
    factors: dict[str, list[int]] | None = field(default=None, metadata={"help": "Modes of a layer width."})
    fusion: Literal["linear", "product"] = field(default="linear", metadata={"help": "Sum or product of branches."})
    input_scale: Literal["none", "tanh", "pi_tanh"] = field(
        default="none", metadata={"help": "Map from the bottleneck to the circuit's angles."}
    )
    angle_init: Literal["uniform", "normal", "zeros"] = field(
        default="uniform", metadata={"help": "Start of the trained angles."}
    )
    gate_order: Literal["published", "older"] = field(
        default="published", metadata={"help": "Order of the gates in a layer of the circuit."}
    )
    entanglement: Literal["ring", "none"] = field(
        default="ring", metadata={"help": "Rings of controlled gates, or none."}
    )
    classical_layers: int | None = field(default=None, metadata={"help": "Layers of the SiLU network, 2 to 4."})
    pointwise: Literal["silu", "sin", "tanh"] = field(
        default="silu", metadata={"help": "The function of the pointwise branch."}
    )
    n_classical_first: int = field(default=0, metadata={"help": "First decoder layers without a circuit."})
    n_classical_last: int = field(default=0, metadata={"help": "Last decoder layers without a circuit."})
    executor: Literal["exact"] = field(default="exact", metadata={"help": "What evaluates the circuits."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the adapter's input."})
    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Modules to adapt: names, a regular expression, or 'all-linear'."}
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules not to adapt."})
    fan_in_fan_out: bool = field(default=False, metadata={"help": "Whether weights are stored as (inputs, outputs)."})
    init_weights: bool = field(default=True, metadata={"help": "Whether the adapter starts at zero."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules to train and save whole."})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Layers to adapt."})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the list of layers."})
    trainable_token_indices: list[int] | dict[str, list[int]] | None = field(
        default=None, metadata={"help": "Tokens whose embeddings are trained."}
    )
    target_parameters: list[str] | None = field(default=None, metadata={"help": "Not supported."})
    library_name: str = field(default="qpeft", metadata={"help": "Package that reads this file."})
    qpeft_version: str | None = field(default=None, metadata={"help": "Version which made the adapter."})
    format_version: int = field(default=FORMAT_VERSION, metadata={"help": "Version of the saved format."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = QPeftType.QTHA
        self._check_origin()
        self._normalize()
        self._check_numbers()
        self._check_combinations()

    @property
    def architecture(self) -> Architecture:
        """The parts the adapter has in a layer that is not kept classical."""
        return ARCHITECTURES[self.arch]

    @property
    def depth(self) -> int:
        """Layers of the circuit or the pointwise branch, with ``None`` resolved to the rank."""
        return self.r if self.n_layers is None else self.n_layers

    @property
    def scaling(self) -> float:
        """Factor of the adapter's output, ``alpha / r``."""
        return (2 * self.r if self.alpha is None else self.alpha) / self.r

    def modes_of(self, size: int) -> tuple[int, ...] | None:
        """Modes the user asked for at a layer width, if any."""
        given = (self.factors or {}).get(str(size))
        return None if given is None else tuple(given)

    def _check_origin(self) -> None:
        if self.format_version > FORMAT_VERSION:
            raise InputError(
                f"this adapter was saved in format {self.format_version} by qpeft {self.qpeft_version}, and qpeft "
                f"{__version__} reads formats up to {FORMAT_VERSION}: upgrade with `pip install -U qpeft`"
            )
        if self.qpeft_version is None:
            self.qpeft_version = __version__
        elif Version(self.qpeft_version).release[:2] > Version(__version__).release[:2]:
            logger.warning(
                "this adapter was made by qpeft %s, newer than the installed %s; it will load, but upgrade with "
                "`pip install -U qpeft` if its results differ",
                self.qpeft_version,
                __version__,
            )

    def _normalize(self) -> None:
        self.arch, letter_layers = resolve_architecture(self.arch)
        if letter_layers is not None:
            if self.classical_layers not in (None, letter_layers):
                raise InputError(
                    f"classical_layers={self.classical_layers} contradicts the letters of arch, which mean "
                    f'{letter_layers}: write arch="classical" and classical_layers'
                )
            self.classical_layers = letter_layers
        elif self.classical_layers is None:
            self.classical_layers = 2
        if str(self.input_scale).replace("*", "_") == "pi_tanh":
            self.input_scale = "pi_tanh"
        if self.factors is not None:
            if not isinstance(self.factors, dict) or not all(
                isinstance(m, list | tuple) for m in self.factors.values()
            ):
                raise InputError(
                    f'factors must map a width to its modes, as {{"576": [6, 6, 4, 4]}} (got {self.factors!r})'
                )
            self.factors = {str(size): list(modes) for size, modes in self.factors.items()}
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]  # as peft's own configs do
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]

    def _check_numbers(self) -> None:
        if self.architecture.branch == "circuit" and not _is_count(self.r, 1, MAX_QUBITS):
            raise InputError(
                f"rank must be between 1 and {MAX_QUBITS} (got {self.r}): one qubit is used per rank; "
                f'choose r <= {MAX_QUBITS} or arch="mpo"'
            )
        counts = {"r": 1, "bond_dim": 1, "inner_features": 1, "n_classical_first": 0, "n_classical_last": 0}
        if self.n_layers is not None:
            counts["n_layers"] = 1
        for name, lowest in counts.items():
            if not _is_count(getattr(self, name), lowest):
                raise InputError(f"{name} must be a whole number of at least {lowest} (got {getattr(self, name)!r})")
        if not _is_count(self.classical_layers, 2, 4):
            raise InputError(f"classical_layers must be 2, 3 or 4 (got {self.classical_layers!r})")
        if self.alpha is not None and not (_is_number(self.alpha) and self.alpha > 0):
            raise InputError(f"alpha must be a number greater than 0 (got {self.alpha!r}): leave it out for 2 r")
        if not (_is_number(self.dropout) and 0 <= self.dropout < 1):
            raise InputError(f"dropout must be a number of at least 0 and less than 1 (got {self.dropout!r})")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(f"{name} must be one of {', '.join(choices)} (got {getattr(self, name)!r})")

    def _check_combinations(self) -> None:
        # a SiLU network is zero at the start, and a product with zero under B = 0 would never learn
        joined = self.architecture.linear and self.architecture.branch in ("circuit", "pointwise")
        if self.fusion == "product" and not joined:
            raise InputError(
                'fusion="product" multiplies the linear branch with a circuit or a pointwise branch, and '
                f'arch="{self.arch}" does not have both: choose fusion="linear", or arch="mpo+quantum" or "quantum"'
            )
        if self.target_parameters:
            raise InputError(
                f"target_parameters is not supported (got {sorted(self.target_parameters)}): fused experts are single "
                "tensors and not linear layers; adapt the attention and dense layers with target_modules"
            )
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise InputError(
                f"layers_to_transform needs target_modules as a list of names (got the text {self.target_modules!r})"
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise InputError("layers_pattern says where layers_to_transform applies: give both, or neither")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any, lowest: int, highest: float = float("inf")) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest
