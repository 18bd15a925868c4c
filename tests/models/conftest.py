"""Tiny models and tokenizers written on the spot, a cache folder of the test's own, and no network."""

import shutil

import gguf
import pytest
import torch
from tiny_gguf import SPECIALS, vocabulary, write_gguf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """The cache folder, empty; the hub counts as out of reach and its cache as empty."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("QPEFT_CACHE", str(folder))
    monkeypatch.setattr("qpeft.models.hub.in_hub_cache", lambda name: None)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", _no_network)
    return folder


def _no_network(*args, **kwargs):
    raise ConnectionError("no route to the hub")


@pytest.fixture(scope="session")
def tiny_llama() -> LlamaForCausalLM:
    """A random Llama with grouped heads, width 64, tied embeddings."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary()[0]),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a start and an end token but no padding."""
    tokens, merges = vocabulary()
    bpe = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[tuple(m.split()) for m in merges]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture
def llama_folder(tmp_path, tiny_llama, tiny_tokenizer):
    """The tiny Llama in the transformers format."""
    folder = tmp_path / "tiny-llama"
    tiny_llama.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def _gguf_files(tmp_path_factory, tiny_llama):
    folder = tmp_path_factory.mktemp("gguf")
    for name, kind in (("f32", gguf.GGMLQuantizationType.F32), ("q8", gguf.GGMLQuantizationType.Q8_0)):
        write_gguf(folder / f"tiny-{name}.gguf", tiny_llama, kind)
    return folder


@pytest.fixture
def gguf_file(tmp_path, _gguf_files):
    """The tiny Llama as a GGUF file in float32."""
    return shutil.copy(_gguf_files / "tiny-f32.gguf", tmp_path / "tiny.gguf")


@pytest.fixture
def gguf_q8_file(tmp_path, _gguf_files):
    """The tiny Llama as a GGUF file in 8 bits."""
    return shutil.copy(_gguf_files / "tiny-q8.gguf", tmp_path / "tiny-q8.gguf")
