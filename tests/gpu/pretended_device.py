"""A CUDA device that is not there, for tests of code that has to run on one.

Tensors made with ``device="cuda"`` live in ordinary memory and carry a mark that results of operations inherit. What
would fail on a real device fails here too: an operation on marked and unmarked tensors together, and NumPy on marked
ones. Numbers are real. Autograd's backward pass loses the mark, so this is for code that differentiates by itself.
"""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
_MOVES = {"to", "copy_", "cpu"}
_READS_HOST_INDICES = {"__getitem__", "__setitem__"}


class MixedDevices(AssertionError):
    """What a CUDA device would refuse."""


def is_marked(value: Any) -> bool:
    return isinstance(value, Tensor) and "_pretended" in value.__dict__


class PretendedDevice(TorchFunctionMode):
    """Inside, ``device="cuda"`` works, as far as the module says."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if name == "__get__":
            return self._attribute(function, args[0])
        marked = any(map(is_marked, tensors))
        if marked and name == "numpy":
            raise MixedDevices("NumPy cannot read a CUDA tensor")
        # A number may come from the host; a tensor of one number may not stand for a vector.
        mixed = marked and not all(is_marked(t) or t.dim() == 0 for t in tensors)
        if mixed and name not in _MOVES | _READS_HOST_INDICES:
            raise MixedDevices(f"{name} of tensors on {[str(t.device) for t in tensors]}")
        asked = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
        asked += [torch.device(leaf) for leaf in leaves if isinstance(leaf, str) and leaf in ("cpu", "cuda")]
        args, kwargs = tree_map(_at_home, (args, kwargs))
        result = function(*args, **kwargs)
        if name in ("copy_", "__setitem__"):
            return result
        if name == "cpu":
            marked = False
        elif asked:
            marked = asked[-1].type == "cuda"
        elif name == "to" and len(tensors) > 1:
            marked = is_marked(tensors[1])
        return tree_map(lambda leaf: self._mark(leaf, marked), result)

    @staticmethod
    def _attribute(function, tensor):
        value = function(tensor)
        if isinstance(value, torch.device) and is_marked(tensor):
            return CUDA
        if isinstance(value, Tensor) and is_marked(tensor):
            value._pretended = True
        return value

    @staticmethod
    def _mark(leaf, marked):
        if not isinstance(leaf, Tensor) or is_marked(leaf) == marked:
            return leaf
        if not marked:
            return leaf.clone()  # for `cpu` may return its argument
        leaf = leaf.view_as(leaf)
        leaf._pretended = True
        return leaf


def _at_home(leaf):
    if isinstance(leaf, torch.device) or (leaf == "cuda" and isinstance(leaf, str)):
        return torch.device("cpu")
    return leaf
