"""GGUF files become float32 models that hold exactly what the file says, with tokenizer and chat template."""

import gguf
import numpy as np
import pytest
import torch
from tiny_gguf import CHAT_TEMPLATE, gguf_tensors, write_gguf

from qpeft.errors import InputError
from qpeft.models import load_model, load_tokenizer, resolve_model

F32 = gguf.GGMLQuantizationType.F32


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 23).reshape(2, 10)).logits  # (2, 10, vocabulary)


def test_float_file_gives_the_same_model(gguf_file, tiny_llama):
    model = load_model(str(gguf_file))
    assert type(model) is type(tiny_llama)
    assert model.dtype == torch.float32
    expected = tiny_llama.state_dict()
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in expected.items()}
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key]), key
    torch.testing.assert_close(logits(model), logits(tiny_llama), rtol=1e-5, atol=1e-5)


def test_quantised_file_gives_the_dequantised_values_exactly(gguf_q8_file, tiny_llama):
    model = load_model(str(gguf_q8_file))
    q8 = gguf.GGMLQuantizationType.Q8_0
    stored = {
        name: gguf.dequantize(gguf.quantize(w, q8), q8) if w.ndim == 2 else w
        for name, w in gguf_tensors(tiny_llama).items()
    }
    for name, w in gguf_tensors(model).items():
        np.testing.assert_array_equal(w, stored[name], err_msg=name)


def test_converted_model_is_not_quantised_and_can_be_saved(gguf_q8_file, tmp_path):
    model = load_model(str(gguf_q8_file))
    assert not getattr(model, "is_quantized", False)
    assert getattr(model.config, "quantization_config", None) is None
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(load_model(str(tmp_path / "saved"))), logits(model))


def test_tokenizer_template_and_special_tokens_survive(gguf_file):
    tokenizer = load_tokenizer(str(gguf_file))
    assert tokenizer.bos_token == "<s>"
    assert tokenizer.eos_token == tokenizer.pad_token == "</s>"
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer.apply_chat_template([{"role": "user", "content": "he"}], tokenize=False) == "<s>he</s>"
    assert tokenizer.model_max_length == 128
    assert len(tokenizer) == load_model(str(gguf_file)).config.vocab_size
    text = "he said: 12  7 = ü</s>"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.tokenize("</s>he") == ["</s>", "he"]


def test_digits_are_words_of_their_own_where_the_vocabulary_was_made_so(gguf_file):
    assert load_tokenizer(str(gguf_file)).tokenize("12  7") == ["1", "2", "ĠĠ", "7"]


def test_second_load_does_not_convert_again(gguf_file):
    steps: list[str] = []
    first = resolve_model(str(gguf_file), progress=steps.append)
    assert len(steps) == 1
    assert steps[0].startswith("converting tiny.gguf")
    assert resolve_model(str(gguf_file), progress=steps.append) == first
    assert len(steps) == 1
    assert first.source == "gguf"
    assert first.reference == str(gguf_file)


def test_changed_file_is_converted_anew(gguf_file, gguf_q8_file):
    first = resolve_model(str(gguf_file))
    gguf_file.write_bytes(gguf_q8_file.read_bytes())
    second = resolve_model(str(gguf_file))
    assert second.folder != first.folder
    assert second.version != first.version


def test_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"there is no GGUF file '.*nothing\.gguf'"):
        resolve_model(str(tmp_path / "nothing.gguf"))


def test_other_content_is_one_sentence(tmp_path):
    (tmp_path / "page.gguf").write_text("<html>not found, sorry about that</html>")
    with pytest.raises(InputError, match="is not a GGUF file"):
        resolve_model(str(tmp_path / "page.gguf"))


@pytest.mark.parametrize("part", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated_file_is_one_sentence(gguf_file, part, own_cache):
    data = gguf_file.read_bytes()
    gguf_file.write_bytes(data[: max(30, int(len(data) * part))])
    with pytest.raises(InputError, match=r"damaged or incomplete .*; download it again"):
        resolve_model(str(gguf_file))
    assert [p.name for p in (own_cache / "models").iterdir() if not p.name.endswith(".lock")] == []


def test_garbled_header_is_one_sentence(gguf_file):
    data = bytearray(gguf_file.read_bytes())
    data[24:4000] = np.random.default_rng(0).bytes(3976)
    gguf_file.write_bytes(data)
    with pytest.raises(InputError, match="damaged or incomplete"):
        resolve_model(str(gguf_file))


def test_unknown_architecture_is_one_sentence(tmp_path, tiny_llama):
    write_gguf(tmp_path / "other.gguf", tiny_llama, F32, arch="unheard-of")
    with pytest.raises(InputError, match=r"architecture unheard-of is not supported.*; give the model's folder"):
        resolve_model(str(tmp_path / "other.gguf"))


def test_missing_tensor_is_one_sentence(tmp_path, tiny_llama):
    write_gguf(tmp_path / "part.gguf", tiny_llama, F32, leave_out=("blk.1.attn_v.weight",))
    with pytest.raises(InputError, match=r"lacks 1 tensors of its architecture, .*layers\.1\.self_attn\.v_proj"):
        resolve_model(str(tmp_path / "part.gguf"))


def test_full_disk_while_saving_is_one_sentence(gguf_file, own_cache, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(InputError, match="no space left for the model"):
        resolve_model(str(gguf_file))
    assert not list((own_cache / "models").glob(".partial*"))
