"""Writing adapters in forms that other programs read."""

from qpeft.export.lora import save_as_lora
from qpeft.export.merged import save_merged

__all__ = ["save_as_lora", "save_merged"]
