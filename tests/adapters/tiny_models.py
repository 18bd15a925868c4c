"""Tiny random models and a tokenizer, made here from configurations, and a slow simulation of the QTHA circuit."""

import math

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from qpeft import QTHAConfig

ARCHITECTURES = (
    "mpo+quantum", "mpo", "quantum", "quantum_only", "linear", "classical", "mpo+classical", "pointwise",
    "mpo+pointwise",
)  # fmt: skip
LINEAR = ("mpo", "linear")
WORDS = [f"w{k}" for k in range(60)]


def llama(seed: int = 0, dtype: torch.dtype = torch.float32, **kwargs) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": 64,
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **kwargs,
        }
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=24, n_layer=2, n_head=2, n_positions=32)).eval()


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_labels=3
    )
    return BertForSequenceClassification(config).eval()


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: k for k, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def tokens(rows: int = 3, length: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(4, 64, (rows, length), generator=generator)


def small_config(**kwargs) -> QTHAConfig:
    return QTHAConfig(
        **{"r": 3, "bond_dim": 2, "inner_features": 16, "target_modules": ["q_proj", "v_proj"], **kwargs}
    )


def slow_circuit(
    z: np.ndarray, angles: np.ndarray, n_layers: int, older: bool = False, entangled: bool = True
) -> np.ndarray:
    """<Z_i> of the QTHA block by full matrices on the whole register, one sample at a time."""
    n = len(z)
    state = np.zeros(2**n, complex)
    state[0] = 1
    remaining = iter(angles)

    def ry(wire: int, angle: float) -> np.ndarray:
        c, s = math.cos(angle / 2), math.sin(angle / 2)
        return np.kron(np.kron(np.eye(2**wire), [[c, -s], [s, c]]), np.eye(2 ** (n - wire - 1)))

    def crz(control: int, target: int, angle: float) -> np.ndarray:
        bits = np.array([[(k >> (n - 1 - wire)) & 1 for wire in (control, target)] for k in range(2**n)])
        on = bits[:, 0] if entangled else 1
        return np.diag(np.exp(1j * angle / 2 * on * (2 * bits[:, 1] - 1)))

    def rotations() -> list[np.ndarray]:
        return [ry(i, next(remaining)) for i in range(n)]

    def ring(step: int) -> list[np.ndarray]:
        return [crz(i, (i + step) % n, next(remaining)) for i in range(n)]

    for _ in range(n_layers):
        gates = [ry(i, z[i]) for i in range(n)]
        if older:
            gates += rotations() + ring(1) + rotations() + ring(-1)
        else:
            gates += ring(1) + rotations() + ring(-1) + rotations()
        for gate in gates:
            state = gate @ state
    probabilities = np.abs(state) ** 2
    signs = np.array([[1 - 2 * ((k >> (n - 1 - i)) & 1) for i in range(n)] for k in range(2**n)])
    return probabilities @ signs
