"""What an adapter costs in parameters, part by part, and what every number in a saved file means."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from qpeft.adapters.qtha.layer import QTHALayer
from qpeft.adapters.qtha.modules import FlatModule, Slice
from qpeft.errors import InputError


@dataclass(frozen=True)
class Padding:
    """A layer width the tensor network had to extend.

    Attributes:
        module: Name of the adapted module.
        side: ``"input"`` or ``"output"`` of the layer, or ``"inner"``.
        size: Width without padding.
        padded: Width of the operator.
    """

    module: str
    side: str
    size: int
    padded: int


@dataclass(frozen=True)
class ParameterCount:
    """Trained numbers of one adapter in a whole model.

    Attributes:
        tensor_network: Entries of the cores.
        linear: Entries of A, B, W_c and W_q.
        angles: Angles of the circuits.
        classical: Entries of the SiLU networks.
        lora_equivalent: What a LoRA of the same rank on the same modules has, ``r (d_in + d_out)`` each.
        modules: Number of adapted modules.
        padded: Widths that had to be padded.
    """

    tensor_network: int
    linear: int
    angles: int
    classical: int
    lora_equivalent: int
    modules: int
    padded: tuple[Padding, ...] = field(default=())

    @property
    def total(self) -> int:
        """Trained numbers of the adapter."""
        return self.tensor_network + self.linear + self.angles + self.classical

    @property
    def saved(self) -> float:
        """Fraction of LoRA's parameters that is saved at the same rank; negative where the adapter has more."""
        return 1 - self.total / self.lora_equivalent


def count_parameters(model: nn.Module, adapter_name: str = "default") -> ParameterCount:
    """Count the trained numbers of an adapter by kind; works on the meta device.

    Args:
        model: A model with QTHA adapters.
        adapter_name: Name of the adapter.

    Returns:
        The counts. Modules trained whole (``modules_to_save``) and token embeddings are not part of them.

    Raises:
        InputError: The model has no such adapter.

    Example:
        >>> import torch
        >>> from peft import get_peft_model
        >>> from qpeft import QTHAConfig, count_parameters
        >>> base = torch.nn.Sequential(torch.nn.Linear(3584, 3584))
        >>> model = get_peft_model(base, QTHAConfig(r=10, target_modules=["0"]))
        >>> count = count_parameters(model)
        >>> count.tensor_network, count.linear, count.angles, count.total, count.lora_equivalent
        (9152, 5320, 40, 14512, 71680)
    """
    totals = dict.fromkeys(("tensor_network", "linear", "angles", "classical"), 0)
    lora, modules, padded = 0, 0, []
    for name, layer in _layers(model, adapter_name):
        modules += 1
        lora += layer.r[adapter_name] * (layer.in_features + layer.out_features)
        for _, part in _slices(layer, adapter_name):
            totals[part.kind] += part.size
        padded += _paddings(name, layer, adapter_name)
    return ParameterCount(**totals, lora_equivalent=lora, modules=modules, padded=tuple(padded))


def describe(model: nn.Module, adapter_name: str = "default") -> str:
    """Name every slice of every flat parameter of an adapter, one line each, and every padded width.

    Args:
        model: A model with QTHA adapters.
        adapter_name: Name of the adapter.

    Returns:
        Lines such as ``layers.0.q_proj.qtha_encoder.weight[4576:6624] = A (8, 256)``.

    Raises:
        InputError: The model has no such adapter.
    """
    lines = []
    for name, layer in _layers(model, adapter_name):
        start, previous = 0, ""
        for leaf, part in _slices(layer, adapter_name):
            start = start if leaf == previous else 0
            previous = leaf
            lines.append(f"{name}.{leaf}.weight[{start}:{start + part.size}] = {part.name} {part.shape}")
            start += part.size
        lines += [f"{p.module}: {p.side} {p.size} padded to {p.padded}" for p in _paddings(name, layer, adapter_name)]
    return "\n".join(lines)


def parameter_groups(model: nn.Module, lr: float, angle_lr: float, weight_decay: float = 0.0) -> list[dict]:
    """Groups for an optimizer in which the circuits' angles have their own learning rate and no weight decay.

    Args:
        model: A model with adapters.
        lr: Learning rate of everything but the angles.
        angle_lr: Learning rate of the angles.
        weight_decay: Weight decay of everything but the angles, which are periodic.

    Returns:
        Two groups that together hold every trained parameter once.

    Raises:
        InputError: Nothing in the model is trained.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trained:
        raise InputError("nothing in this model is trained: load the adapter with is_trainable=True")
    angles = [parameter for name, parameter in trained if ".qtha_circuit." in name]
    others = [parameter for name, parameter in trained if ".qtha_circuit." not in name]
    groups = [
        {"params": others, "lr": lr, "weight_decay": weight_decay},
        {"params": angles, "lr": angle_lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def freeze_angles(model: nn.Module, adapter_name: str = "default") -> None:
    """Leave the angles of an adapter's circuits as they are, also when it is activated again; they are still saved.

    The control that tells trained circuits from random ones. Not part of the saved adapter: call it again after
    loading.

    Args:
        model: A model with QTHA adapters.
        adapter_name: Name of the adapter.

    Raises:
        InputError: The model has no such adapter.
    """
    for _, layer in _layers(model, adapter_name):
        layer.freeze_angles(adapter_name)


def _layers(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, QTHALayer]]:
    found = False
    for name, module in model.named_modules():
        if isinstance(module, QTHALayer) and adapter_name in module.architectures:
            found = True
            yield name.removeprefix("base_model.model."), module
    if not found:
        raise InputError(f"the model has no QTHA adapter called {adapter_name!r}: pass the name it was added under")


def _slices(layer: QTHALayer, adapter_name: str) -> Iterator[tuple[str, Slice]]:
    for leaf_name in layer.adapter_layer_names:
        leaves = getattr(layer, leaf_name)
        if adapter_name not in leaves:
            continue
        leaf = leaves[adapter_name]
        if isinstance(leaf, FlatModule):
            for part in leaf.layout:
                yield leaf_name, part
        else:
            yield leaf_name, Slice("angles", "angles", (leaf.weight.numel(),))


def _paddings(name: str, layer: QTHALayer, adapter_name: str) -> list[Padding]:
    mpo_in, mpo_out = layer.encoder(adapter_name).mpo, layer.decoder(adapter_name).mpo
    if mpo_in is None or mpo_out is None:
        return []
    sides = [("input", mpo_in.inputs), ("inner", mpo_in.outputs), ("output", mpo_out.outputs)]
    return [Padding(name, side, modes.size, modes.padded) for side, modes in sides if modes.padding]
