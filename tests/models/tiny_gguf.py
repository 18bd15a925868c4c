"""A vocabulary of bytes, and GGUF files written from a tiny Llama."""

import gguf
import numpy as np
from transformers import LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

CHAT_TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
SPECIALS = ["<unk>", "<s>", "</s>"]


def vocabulary() -> tuple[list[str], list[str]]:
    """Tokens (specials, all bytes, three merged words) and merges."""
    merges = ["h e", "Ġ Ġ", "1 2"]
    return [*SPECIALS, *sorted(bytes_to_unicode().values()), *(m.replace(" ", "") for m in merges)], merges


def gguf_tensors(model: LlamaForCausalLM) -> dict[str, np.ndarray]:
    """The weights under the names, and in the order of rows, that llama.cpp's format prescribes."""
    parts = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    state = {k: v.numpy() for k, v in model.state_dict().items()}
    out = {"token_embd.weight": state["model.embed_tokens.weight"], "output_norm.weight": state["model.norm.weight"]}
    heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
    for layer in range(model.config.num_hidden_layers):
        for ours, theirs in parts.items():
            w = state[f"model.layers.{layer}.{ours}.weight"]
            if theirs in heads:  # the two halves of each head are interleaved for rotary embedding
                n = heads[theirs]
                w = w.reshape(n, 2, w.shape[0] // n // 2, -1).swapaxes(1, 2).reshape(w.shape)
            out[f"blk.{layer}.{theirs}.weight"] = np.ascontiguousarray(w)
    return out


def write_gguf(path, model: LlamaForCausalLM, kind: gguf.GGMLQuantizationType, *, arch="llama", leave_out=()) -> None:
    """Write a GGUF file with the model, its tokenizer and its chat template."""
    config = model.config
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    tokens, merges = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(tokens) - len(SPECIALS)))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, w in gguf_tensors(model).items():
        if name in leave_out:
            continue
        if w.ndim == 2 and kind != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, gguf.quantize(w, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, w)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
