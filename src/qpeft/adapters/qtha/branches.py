"""Classical networks that stand in for the circuit, leaves with one flat parameter as the other parts of an adapter.

    classical  q = M_L silu(... silu(M_1 z + b_1) ...) + b_L       L (r² + r) numbers
    pointwise  q <- a f(b q + c) + d for each layer, from q = z    4 r numbers a layer, a, b, c, d of length r

A pointwise branch has exactly as many numbers as a circuit of the same width and depth has angles (two qubits or
more), and mixes its inputs as little as a circuit without entanglement. With ``f = sin`` a layer is the first term of
the Fourier series in z that <Z> of data-encoding circuits is (Schuld et al., arXiv 2008.08605).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qpeft.adapters.qtha.modules import FlatModule, Slice

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "sin": torch.sin, "tanh": torch.tanh}


class ClassicalBranch(FlatModule):
    """The control for the circuit: an r-wide network of linear layers with SiLU between them, zero at the start.

    Args:
        r: Width of every layer.
        n_layers: Number of linear layers.
    """

    def __init__(self, r: int, n_layers: int) -> None:
        layout = []
        for k in range(1, n_layers + 1):
            layout += [Slice(f"layer{k}.matrix", "classical", (r, r)), Slice(f"layer{k}.bias", "classical", (r,))]
        super().__init__(layout)
        self.n_layers = n_layers

    @torch.no_grad()
    def reset_parameters(self, zero: bool = True) -> None:
        """Kaiming uniform matrices and zero biases; the last matrix zero."""
        for name, part in self._own_parts():
            if name.endswith("bias") or (zero and name.startswith(f"layer{self.n_layers}.")):
                nn.init.zeros_(part)
            else:
                nn.init.kaiming_uniform_(part)

    def forward(self, z: Tensor) -> Tensor:
        """Map ``(..., r)`` to ``(..., r)``."""
        parts = {name: part.to(self.weight.dtype) for name, part in self.parts().items()}
        for k in range(1, self.n_layers + 1):
            z = F.linear(F.silu(z) if k > 1 else z, parts[f"layer{k}.matrix"], parts[f"layer{k}.bias"])
        return z


class PointwiseBranch(FlatModule):
    """The control of the circuit's own size: a function of each number alone, ``q_i <- a_i f(b_i q_i + c_i) + d_i``.

    Computed in float32, as circuits are. It starts as ``f`` itself, and so, as a circuit, not at zero.

    Args:
        r: Width.
        n_layers: Number of layers, one after the other.
        function: ``"silu"``, ``"sin"`` or ``"tanh"``.
    """

    def __init__(self, r: int, n_layers: int, function: str) -> None:
        super().__init__([Slice(f"layer{k}", "classical", (4, r)) for k in range(1, n_layers + 1)])
        self.function = function

    @torch.no_grad()
    def reset_parameters(self, identity: bool = True) -> None:
        """``a`` and ``b`` one, ``c`` and ``d`` zero; without ``identity`` up to a half beside that, for tests."""
        for _, part in self._own_parts():
            part.copy_(torch.tensor([1.0, 1.0, 0.0, 0.0], device=part.device)[:, None])
            if not identity:
                part.add_(torch.rand_like(part) - 0.5)

    def forward(self, z: Tensor) -> Tensor:
        """Map ``(..., r)`` to ``(..., r)`` in float32."""
        function, q = _FUNCTIONS[self.function], z.float()
        for part in self.parts().values():
            a, b, c, d = part.unbind(0)  # (r,) each
            q = torch.addcmul(d, a, function(torch.addcmul(c, b, q)))
        return q
