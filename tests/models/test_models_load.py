"""Loading: dtype, device, padding, tasks, and one sentence for every folder that cannot be loaded."""

import json
import logging
import os
import socket

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel

from qpeft.errors import InputError
from qpeft.models import load_model, load_tokenizer, resolve_model


@pytest.fixture
def bert_folder(tmp_path):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("auto", torch.float32),
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
    ],
)
def test_dtype(llama_folder, dtype, expected):
    model = load_model(str(llama_folder), dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {expected}
    assert not model.training


def test_auto_dtype_is_the_stored_one(tmp_path, tiny_llama):
    config = tiny_llama.config
    type(tiny_llama)(config).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert load_model(str(tmp_path / "half")).dtype == torch.bfloat16


def test_name_to_load_it_by_again_is_recorded(llama_folder):
    model = load_model(str(llama_folder), device="cpu")
    assert model.name_or_path == model.config.name_or_path == str(llama_folder)
    assert load_tokenizer(str(llama_folder)).name_or_path == str(llama_folder)


def test_end_token_pads_where_no_other_does(llama_folder, caplog):
    with caplog.at_level(logging.INFO, logger="qpeft.models"):
        tokenizer = load_tokenizer(str(llama_folder))
    assert tokenizer.pad_token == "</s>"
    assert "has no padding token; '</s>' pads" in caplog.text
    assert tokenizer(["he", "he he he"], padding=True)["attention_mask"][0].count(0) > 0
    model = load_model(str(llama_folder))
    assert model.config.pad_token_id == model.generation_config.pad_token_id == tokenizer.pad_token_id == 2


def test_padding_token_of_the_tokenizer_wins_over_the_end_token(llama_folder, tiny_tokenizer):
    path = llama_folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "<unk>"}))
    assert load_tokenizer(str(llama_folder)).pad_token == "<unk>"
    assert load_model(str(llama_folder)).config.pad_token_id == 0


def test_model_without_tokenizer_loads(tmp_path, tiny_llama):
    tiny_llama.save_pretrained(tmp_path / "bare")
    assert load_model(str(tmp_path / "bare")).config.pad_token_id == 2
    with pytest.raises(InputError, match="has no tokenizer; save one next to its weights"):
        load_tokenizer(str(tmp_path / "bare"))


def test_classification_on_a_causal_model_ignores_padding(llama_folder):
    torch.manual_seed(0)
    model = load_model(str(llama_folder), task="sequence-classification", num_labels=3)
    tokenizer = load_tokenizer(str(llama_folder))
    alone = tokenizer(["he he"], return_tensors="pt")
    batch = tokenizer(["he he", "he he he he he"], padding=True, return_tensors="pt")
    with torch.no_grad():
        scores = model(**batch).logits  # (2, 3)
        assert scores.shape == (2, 3)
        torch.testing.assert_close(scores[:1], model(**alone).logits, rtol=1e-5, atol=1e-5)


def test_classification_on_an_encoder(bert_folder):
    model = load_model(str(bert_folder), task="sequence-classification", num_labels=4)
    assert model(torch.tensor([[1, 2, 3]])).logits.shape == (1, 4)
    assert torch.equal(
        model.bert.embeddings.word_embeddings.weight,
        BertModel.from_pretrained(bert_folder).embeddings.word_embeddings.weight,
    )


def test_classification_on_an_encoder_published_without_pooler(tmp_path):
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertForMaskedLM(config).save_pretrained(tmp_path / "mlm")
    assert load_model(str(tmp_path / "mlm"), task="sequence-classification").num_labels == 2


def test_encoder_as_causal_model_is_one_sentence(bert_folder):
    with pytest.raises(InputError, match=r"cannot serve as BertLMHeadModel: .*; use task sequence-classification"):
        load_model(str(bert_folder))


def test_weights_of_another_model_are_one_sentence(llama_folder, bert_folder):
    (llama_folder / "model.safetensors").write_bytes((bert_folder / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match="it has no weights for"):
        load_model(str(llama_folder), task="sequence-classification")


def test_weights_of_another_size_are_one_sentence(llama_folder):
    path = llama_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 80}))
    with pytest.raises(
        InputError, match=r"holds 6 tensors of another shape .*proj\.weight with \[64, 96\] instead of"
    ):
        load_model(str(llama_folder))


@pytest.mark.parametrize("change", [{"hidden_size": "x"}, {"num_attention_heads": 7}, {"hidden_act": "unheard-of"}])
def test_impossible_config_is_one_sentence(llama_folder, change):
    path = llama_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=r"the model of '.*tiny-llama' cannot be loaded \("):
        load_model(str(llama_folder))


def test_trained_head_is_not_replaced_in_silence(tmp_path, llama_folder):
    load_model(str(llama_folder), task="sequence-classification", num_labels=3).save_pretrained(tmp_path / "three")
    assert load_model(str(tmp_path / "three"), task="sequence-classification").num_labels == 3
    with pytest.raises(InputError, match=r"score\.weight with \[3, 64\] instead of \[2, 64\]"):
        load_model(str(tmp_path / "three"), task="sequence-classification", num_labels=2)


def test_loading_prints_nothing(llama_folder, capfd):
    capfd.readouterr()
    load_model(str(llama_folder), task="sequence-classification", num_labels=2)
    load_tokenizer(str(llama_folder))
    assert capfd.readouterr() == ("", "")


def test_unknown_model_type_is_one_sentence(llama_folder):
    (llama_folder / "config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(InputError, match=r"cannot be loaded \(.*unheard-of.*\); check that its files"):
        load_model(str(llama_folder))


def test_damaged_tokenizer_is_one_sentence(llama_folder):
    os.truncate(llama_folder / "tokenizer.json", 1000)
    with pytest.raises(InputError, match=r"the tokenizer of '.*tiny-llama' cannot be loaded"):
        load_tokenizer(str(llama_folder))


def test_tokenizer_without_padding_and_end_is_one_sentence(llama_folder):
    path = llama_folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": None}))
    with pytest.raises(InputError, match="neither a padding nor an end-of-sequence token"):
        load_tokenizer(str(llama_folder))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda f: (f / "config.json").unlink(), r"has no config\.json"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "holds a list instead of an object"),
        (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
        (lambda f: os.truncate(f / "model.safetensors", 20_000), r"damaged: 20,000 bytes instead of"),
        (lambda f: os.truncate(f / "model.safetensors", 200), "is damaged"),
        (lambda f: os.truncate(f / "model.safetensors", 4), "is damaged"),
        (lambda f: (f / "model.safetensors").write_bytes(b"<html>" * 99), "is damaged"),
    ],
)
def test_incomplete_folder_is_one_sentence(llama_folder, damage, sentence):
    damage(llama_folder)
    with pytest.raises(InputError, match=sentence):
        load_model(str(llama_folder))


def test_more_layers_than_weights_is_one_sentence(llama_folder):
    path = llama_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 3}))
    with pytest.raises(
        InputError, match=r"no weights for 9 tensors, model\.layers\.2\..*; use the files of one model"
    ):
        load_model(str(llama_folder))


@pytest.mark.parametrize("size", [0, 200, 100_000])
def test_damaged_pickled_weights_are_one_sentence(llama_folder, tiny_llama, size):
    (llama_folder / "model.safetensors").unlink()
    torch.save(tiny_llama.state_dict(), llama_folder / "pytorch_model.bin")
    assert torch.equal(load_model(str(llama_folder)).model.norm.weight, tiny_llama.model.norm.weight)
    os.truncate(llama_folder / "pytorch_model.bin", size)
    with pytest.raises(InputError, match=r"the model of '.*tiny-llama' cannot be loaded"):
        load_model(str(llama_folder))


def test_missing_shard_is_one_sentence(llama_folder):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (llama_folder / "model.safetensors").rename(llama_folder / "model-00001-of-00002.safetensors")
    (llama_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"lacks its weight file model-00002-of-00002\.safetensors"):
        resolve_model(str(llama_folder))


def test_sharded_folder_loads(tmp_path, tiny_llama):
    tiny_llama.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert not (tmp_path / "sharded" / "model.safetensors").exists()
    assert torch.equal(load_model(str(tmp_path / "sharded")).model.norm.weight, tiny_llama.model.norm.weight)


def test_adapter_folder_is_told_apart(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds an adapter, not a base model; load it with qpeft\.load"):
        resolve_model(str(tmp_path))


def test_folder_of_gguf_files_names_the_file(tmp_path):
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"give the file itself: '.*some\.gguf'"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"task": "translation"}, r"task must be one of .* \(got 'translation'\)"),
        ({"dtype": "int8"}, r"dtype must be one of .* \(got 'int8'\)"),
        ({"device": "toaster"}, r"device must be auto, cpu, cuda .* \(got 'toaster'\)"),
        ({"device": "cuda:7"}, r"device 'cuda:7' is not there"),
        ({"num_labels": 3}, "num_labels must be a positive number"),
        ({"task": "sequence-classification", "num_labels": 0}, "num_labels must be a positive number"),
    ],
)
def test_bad_option_is_one_sentence(llama_folder, options, sentence):
    with pytest.raises(InputError, match=sentence):
        load_model(str(llama_folder), **options)


def test_loading_what_is_here_asks_no_network(llama_folder, gguf_file, monkeypatch):
    resolve_model(str(gguf_file))

    def refuse(*args, **kwargs):
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in (str(llama_folder), str(gguf_file)):
        load_model(name)
        load_tokenizer(name)
