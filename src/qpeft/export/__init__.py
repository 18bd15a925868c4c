"""Writing adapters in forms that other programs read."""

from qpeft.export.gguf import find_converter, save_gguf, save_lora_gguf
from qpeft.export.lora import save_as_lora
from qpeft.export.merged import save_merged

__all__ = ["find_converter", "save_as_lora", "save_gguf", "save_lora_gguf", "save_merged"]
