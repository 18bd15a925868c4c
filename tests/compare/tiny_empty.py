"""The tiny Llama of these tests on the meta device, and one with numbers."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

TARGETS = ["q_proj", "v_proj"]


def tiny_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=64, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


def empty_llama() -> LlamaForCausalLM:
    with torch.device("meta"):
        return LlamaForCausalLM(tiny_config()).requires_grad_(False)


def full_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config()).eval()
