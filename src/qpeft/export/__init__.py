"""Writing adapters in forms that other programs read."""

from qpeft.export.lora import save_as_lora

__all__ = ["save_as_lora"]
