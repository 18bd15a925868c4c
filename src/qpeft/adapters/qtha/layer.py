"""A frozen linear layer with QTHA adapters beside it."""

import math
import warnings
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import resolve_quantization_backend
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from qpeft.adapters.qtha.architectures import Architecture
from qpeft.adapters.qtha.branches import ClassicalBranch, PointwiseBranch
from qpeft.adapters.qtha.config import QTHAConfig
from qpeft.adapters.qtha.modules import Decoder, Encoder
from qpeft.circuits import qtha_block
from qpeft.errors import InputError, MergeError
from qpeft.layer import QuantumLayer
from qpeft.tensornet import MPO, choose_modes


class QTHALayer(BaseTunerLayer):
    """What every adapted layer keeps for each adapter, by adapter name.

    ``qtha_encoder``, ``qtha_circuit``, ``qtha_classical`` and ``qtha_decoder`` hold the trained leaves; an adapter has
    at most one of the middle two.
    """

    adapter_layer_names: tuple[str, ...] = ("qtha_encoder", "qtha_circuit", "qtha_classical", "qtha_decoder")
    other_param_names: tuple[str, ...] = ("qtha_dropout", "r", "scaling", "input_scale", "architectures")

    def __init__(self, base_layer: nn.Module, **kwargs: Any) -> None:
        self.base_layer = base_layer
        self.qtha_encoder = nn.ModuleDict({})
        self.qtha_circuit = nn.ModuleDict({})
        self.qtha_classical = nn.ModuleDict({})
        self.qtha_decoder = nn.ModuleDict({})
        self.qtha_dropout = nn.ModuleDict({})
        self.r: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self.input_scale: dict[str, str] = {}
        self.architectures: dict[str, Architecture] = {}
        self._disable_adapters = False
        self.merged_adapters = []
        self.cast_input_dtype_enabled = True

        base_layer = self.get_base_layer()
        self.quantization_backend = resolve_quantization_backend(base_layer, **kwargs)
        if isinstance(base_layer, Conv1D):
            weight = base_layer.weight
            sizes = getattr(weight, "ds_shape", weight.shape)
        else:
            sizes = (base_layer.in_features, base_layer.out_features)
        self.in_features: int = sizes[0]
        self.out_features: int = sizes[1]

    @staticmethod
    def supports(base_layer: nn.Module, **kwargs: Any) -> bool:
        """Whether a module can be adapted: a linear layer, plain or quantized, or GPT-2's ``Conv1D``."""
        if isinstance(base_layer, (nn.Linear, Conv1D)):
            return True
        backend = resolve_quantization_backend(base_layer, **kwargs)
        return backend is not None and backend.layer_type == "linear"

    def update_layer(
        self, adapter_name: str, config: QTHAConfig, architecture: Architecture, inference_mode: bool = False
    ) -> None:
        """Create the leaves of an adapter.

        Args:
            adapter_name: Name of the adapter.
            config: Its configuration.
            architecture: Its parts on this layer, which are fewer than the configuration's where layers are kept
                classical.
            inference_mode: Whether the leaves start frozen.
        """
        mpo_in, mpo_out = self._operators(config) if architecture.tensor_network else (None, None)
        self.r[adapter_name] = config.r
        self.scaling[adapter_name] = config.scaling
        self.input_scale[adapter_name] = config.input_scale
        self.architectures[adapter_name] = architecture
        self.qtha_dropout[adapter_name] = nn.Dropout(config.dropout) if config.dropout > 0 else nn.Identity()

        encoder = Encoder(self.in_features, config.r, mpo_in)
        encoder.reset_parameters()
        self.qtha_encoder[adapter_name] = encoder
        if architecture.branch == "circuit":
            circuit = qtha_block(
                config.r, config.depth, gate_order=config.gate_order, entanglement=config.entanglement
            )
            self.qtha_circuit[adapter_name] = QuantumLayer(circuit, config.executor, init=config.angle_init)
        elif architecture.branch == "classical":
            assert config.classical_layers is not None
            classical = ClassicalBranch(config.r, config.classical_layers)
            classical.reset_parameters(zero=config.init_weights)
            self.qtha_classical[adapter_name] = classical
        elif architecture.branch == "pointwise":
            pointwise = PointwiseBranch(config.r, config.depth, config.pointwise)
            pointwise.reset_parameters(identity=config.init_weights)
            self.qtha_classical[adapter_name] = pointwise
        decoder = Decoder(
            self.out_features,
            config.r,
            mpo_out,
            linear=architecture.linear,
            branch=architecture.branch is not None,
            product=config.fusion == "product",
        )
        decoder.reset_parameters(zero=config.init_weights)
        self.qtha_decoder[adapter_name] = decoder

        # A new adapter takes the dtype of the base layer, as every peft adapter does; peft raises it to float32
        # afterwards unless it was asked not to.
        BaseTunerLayer._move_adapter_to_device_of_base_layer(self, adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def _operators(self, config: QTHAConfig) -> tuple[MPO, MPO]:
        inner = choose_modes(config.inner_features, config.modes_of(config.inner_features))
        inputs = choose_modes(self.in_features, config.modes_of(self.in_features))
        outputs = choose_modes(self.out_features, config.modes_of(self.out_features))
        return MPO(inputs, inner, config.bond_dim), MPO(inner, outputs, config.bond_dim)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # peft calls this after it has put loaded weights in place (low_cpu_mem_usage). Casting there to the base
        # layer's bfloat16 would round trained angles, so only the device may change.
        base_weight = getattr(self.get_base_layer(), "weight", None)
        target = device if device is not None else getattr(base_weight, "device", None)
        if target is None:
            return
        for name in (*self.adapter_layer_names, "qtha_dropout"):
            leaves = getattr(self, name)
            if adapter_name in leaves and not any(p.is_meta for p in leaves[adapter_name].parameters()):
                leaves[adapter_name].to(target)

    def encoder(self, adapter_name: str) -> Encoder:
        """The leaf that compresses an activation."""
        return cast(Encoder, self.qtha_encoder[adapter_name])

    def decoder(self, adapter_name: str) -> Decoder:
        """The leaf that joins the branches and expands the bottleneck."""
        return cast(Decoder, self.qtha_decoder[adapter_name])

    def freeze_angles(self, adapter_name: str) -> None:
        """Leave the circuit's angles as they are, whatever peft activates later."""
        self.frozen_peft_weight_names = {**self.frozen_peft_weight_names, adapter_name: ("qtha_circuit",)}
        self._freeze_non_trainable_peft_weights(adapter_name)

    def add_adapter(self, adapter_name: str, x: Tensor, y: Tensor) -> Tensor:
        """Add an adapter's output to that of the base layer.

        Args:
            adapter_name: Name of the adapter.
            x: Input of the layer, shape ``(..., in_features)``.
            y: Output so far, shape ``(..., out_features)``; not changed.

        Returns:
            The sum, in the dtype of ``y``.
        """
        encoder, dropout = self.encoder(adapter_name), self.qtha_dropout[adapter_name]
        if not isinstance(dropout, nn.Identity):
            x = dropout(self._cast_input_dtype(x, encoder.weight.dtype))
        z = encoder(x)  # (..., r)
        q = None
        if adapter_name in self.qtha_circuit:
            q = self.qtha_circuit[adapter_name](_scale_input(z, self.input_scale[adapter_name]))
        elif adapter_name in self.qtha_classical:
            scaled = self.architectures[adapter_name].branch == "pointwise"
            given = _scale_input(z, self.input_scale[adapter_name]) if scaled else z
            q = self.qtha_classical[adapter_name](given)
        return self.qtha_decoder[adapter_name](y, z, q, self.scaling[adapter_name])

    def is_linear(self, adapter_name: str) -> bool:
        """Whether the adapter adds a fixed matrix on this layer, so that it can be merged and exported exactly."""
        return adapter_name not in self.architectures or self.architectures[adapter_name].branch is None

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether the adapter is a LoRA in other words."""
        return self.is_linear(adapter_name)

    def linear_factors(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """The adapter as ``dW = B A`` in float32, with the scale inside B: ``(r, d_in)`` and ``(d_out, r)``.

        Raises:
            MergeError: The adapter is not linear on this layer.
        """
        refuse_if_not_linear(self, adapter_name)
        with torch.no_grad():
            matrix = self.decoder(adapter_name).matrix() * self.scaling[adapter_name]
            return self.encoder(adapter_name).matrix(), matrix


class QTHALinear(nn.Module, QTHALayer):
    """A linear layer with adapters.

    Args:
        base_layer: The layer to adapt.
        adapter_name: Name of the first adapter.
        config: Its configuration.
        architecture: Its parts on this layer.
        **kwargs: What peft found out about the quantization of the model.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: QTHAConfig,
        architecture: Architecture,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        QTHALayer.__init__(self, base_layer, **kwargs)
        self.fan_in_fan_out = config.fan_in_fan_out or isinstance(self.get_base_layer(), Conv1D)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, architecture, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Output of the base layer plus that of every active adapter, in the base layer's dtype."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        dtype = result.dtype
        if self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        names = [name for name in self.active_adapters if name in self.qtha_encoder]
        if len(names) > 1:
            result = result.to(torch.promote_types(dtype, torch.float32))  # so that the sum is rounded once
        for name in names:
            result = self.add_adapter(name, x, result)
        return result.to(dtype)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """The matrix which the adapter adds, in float32 and in the layout of the base layer's weight.

        Raises:
            MergeError: The adapter is not linear on this layer.
        """
        lora_a, lora_b = self.linear_factors(adapter_name)
        delta = lora_b @ lora_a
        return delta.T.contiguous() if self.fan_in_fan_out else delta

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters to the base layer's weight; the sum is taken in float32 and rounded once.

        Args:
            safe_merge: Whether to check that the result is finite before the weight is changed.
            adapter_names: Adapters to merge; by default the active ones.

        Raises:
            MergeError: An adapter is not linear, or the quantized base layer cannot be written.
            ValueError: ``safe_merge`` found a value that is not finite.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.qtha_encoder]
        if not names:
            return
        for name in names:
            refuse_if_not_linear(self, name)
        backend = self.quantization_backend
        if backend is not None and not backend.supports_merge:
            raise MergeError(
                f"an adapter cannot be merged into {backend.backend_name} weights, which cannot be written back: load "
                "the base model unquantized in 16 bit and merge into that"
            )
        delta = torch.stack([self.get_delta_weight(name) for name in names]).sum(0)
        self._add_to_base_weight(delta, names, check_finite=safe_merge)
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Subtract all merged adapters from the base layer's weight."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        deltas = [self.get_delta_weight(name) for name in self.merged_adapters if name in self.qtha_encoder]
        if deltas:
            self._add_to_base_weight(-torch.stack(deltas).sum(0), self.merged_adapters)
        self.merged_adapters.clear()

    def _add_to_base_weight(self, delta: Tensor, names: list[str], check_finite: bool = False) -> None:
        weight = self.get_base_weight()
        merged = (weight.float() + delta.to(weight.device)).to(weight.dtype)
        if check_finite and not torch.isfinite(merged).all():
            # peft's own words: callers match on them.
            raise ValueError(f"NaNs detected in the merged weights. The adapter {', '.join(names)} seems to be broken")
        self.set_base_weight(merged)

    def __repr__(self) -> str:
        return "qtha." + super().__repr__()


def refuse_if_not_linear(layer: QTHALayer, adapter_name: str) -> None:
    """Raise :class:`qpeft.errors.MergeError` for an adapter that is not a fixed matrix on a layer."""
    if not layer.is_linear(adapter_name):
        arch = layer.architectures[adapter_name]
        what = "reads the activation with a circuit" if arch.branch == "circuit" else "has a non-linear branch"
        raise MergeError(
            f'adapter {adapter_name!r} (arch "{arch.name}") {what} and so is not a fixed matrix that could be merged '
            'or written as LoRA: keep the adapter beside the base model, train with arch="mpo", or distil it'
        )


def unsupported_module(name: str, module: nn.Module) -> InputError:
    """The error for a target that is not a linear layer."""
    return InputError(
        f"target module {name!r} is a {type(module).__name__}, and QTHA adapts linear layers (torch.nn.Linear, "
        "quantized ones, and Conv1D of transformers): name linear layers in target_modules, or use "
        '"all-linear"; embeddings, convolutions and fused experts are not supported'
    )


def _scale_input(z: Tensor, how: str) -> Tensor:
    if how == "none":
        return z
    return torch.tanh(z) * (math.pi if how == "pi_tanh" else 1.0)
