"""`peft_config: {name: qtha}` for LLaMA-Factory: importing this package registers it in its table of methods."""

from qpeft_llama_factory.method import get_qtha_model

__all__ = ["get_qtha_model"]
