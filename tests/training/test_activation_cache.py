"""A model that reads the activations below its adapted layers from a cache computes what the whole model computes."""

import json
import multiprocessing

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from qpeft import QTHAConfig
from qpeft.errors import InputError
from qpeft.training import RunFolder, labelled_loss, make_recipe, ranks, train
from qpeft.training.activation_store import ActivationStore
from qpeft.training.activations import cached_activations
from qpeft.training.amounts import bytes_of
from qpeft.training.bases import BaseModels
from qpeft.training.run_folder import read_metrics
from tiny_base import recipe_values, save_llama

SHAPE = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.1, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT2 = {"n_layer": 4, "n_embd": 32, "n_head": 4, "vocab_size": 97, "bos_token_id": 1, "eos_token_id": 2}
QUIET = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "qwen2, sliding windows": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8)),
    "gemma2, scaled embeddings": lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8, sliding_window=4)),
    "gpt2, learned positions": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, **QUIET)),
    "opt, decoder in a model": lambda: OPTForCausalLM(
        OPTConfig(**SHAPE, dropout=0.0, ffn_dim=48, word_embed_proj_dim=32)
    ),
}


def adapted(family="llama", layers=(2, 3), dtype=torch.float32, method="lora", **options):
    torch.manual_seed(0)
    base = FAMILIES[family]().to(dtype)
    targets = ["c_attn"] if family.startswith("gpt2") else ["q_proj", "v_proj"]
    common = {"task_type": "CAUSAL_LM", "target_modules": targets, "layers_to_transform": list(layers)}
    if method == "qtha":
        config = QTHAConfig(r=2, bond_dim=2, inner_features=8, **common, **options)
    else:
        config = LoraConfig(r=2, init_lora_weights=False, **common, **options)
    model = get_peft_model(base, config).train()
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:  # away from a start at which the adapter gives nothing
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def batch(lengths=(10, 7, 9), length=10, seed=2):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 97, (len(lengths), length), generator=generator)
    mask = (torch.arange(length) < torch.tensor(lengths)[:, None]).long()
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "labels": ids.masked_fill(mask == 0, -100),
    }


def outcome(model, inputs):
    """Loss, logits at tokens, and all gradients as one vector."""
    model.zero_grad()
    output = model(**inputs)
    output.loss.backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
    mask = inputs["attention_mask"].bool()
    return output.loss.detach(), output.logits[mask].detach(), torch.cat(gradients)


def assert_close(found, expected, relative):
    for ours, theirs in zip(found, expected, strict=True):
        difference, size = (ours.double() - theirs.double()).norm(), theirs.double().norm()
        assert size > 0
        assert difference <= relative * size


@pytest.mark.parametrize("family", FAMILIES)
def test_gives_what_the_whole_model_gives(family, tmp_path):
    model = adapted(family)
    expected = outcome(model, batch())
    with cached_activations(model, tmp_path, 10**7) as cache:
        first, second = outcome(model, batch()), outcome(model, batch())
    assert_close(first, expected, 1e-5)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert (cache.computed, cache.read, cache.unkept, cache.whole) == (3, 3, 0, 0)
    assert cache.frozen.count == 2


@pytest.mark.parametrize("method", ["lora", "qtha"])
def test_works_for_our_adapters_and_peft_s_and_leaves_the_lower_layers_out(method, tmp_path):
    model = adapted(method=method, layers=(3,))
    calls = []
    layers = model.get_base_model().model.layers
    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(lambda module, args, index=index: calls.append(index))
    expected = outcome(model, batch())
    with cached_activations(model, tmp_path, 10**7):
        outcome(model, batch())
        calls.clear()
        found = outcome(model, batch())
    assert calls == [3]
    assert_close(found, expected, 1e-5)


def test_a_sample_is_known_again_whatever_it_is_padded_to(tmp_path):
    model = adapted()
    ids = batch()["input_ids"]
    wider = {"input_ids": torch.nn.functional.pad(ids, (0, 5), value=9), "attention_mask": batch()["attention_mask"]}
    wider["attention_mask"] = torch.nn.functional.pad(wider["attention_mask"], (0, 5))
    wider["labels"] = wider["input_ids"].masked_fill(wider["attention_mask"] == 0, -100)
    expected = outcome(model, batch())
    with cached_activations(model, tmp_path, 10**7) as cache:
        outcome(model, batch())
        found = outcome(model, wider)
    assert (cache.computed, cache.read) == (3, 3)
    assert_close(found, expected, 1e-5)


def test_the_loss_at_labels_alone_and_validation_use_it(tmp_path):
    model = adapted()
    expected = labelled_loss.labelled_loss(model, batch())[0].detach()
    with cached_activations(model, tmp_path, 10**7) as cache:
        found = labelled_loss.labelled_loss(model, batch())[0].detach()
        model.eval()
        with torch.no_grad():
            validation = labelled_loss.labelled_loss(model, batch())[0]
    assert cache.read == cache.computed == 3
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(validation, expected, rtol=1e-5, atol=0)


def test_in_bfloat16_the_loss_is_equal_within_its_rounding(tmp_path):
    model = adapted(dtype=torch.bfloat16)
    expected = outcome(model, batch())
    with cached_activations(model, tmp_path, 10**7) as cache:
        found = outcome(model, batch())
        assert outcome(model, batch())[0] == found[0]
    state = cache.store.get(next(path.name for path in tmp_path.glob("*/??/*")))
    assert state.dtype == torch.bfloat16
    assert_close(found[:1], expected[:1], 2**-8)
    assert_close(found, expected, 2**-4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_with_gradient_checkpointing(reentrant, tmp_path):
    model = adapted()
    expected = outcome(model, batch())
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    with cached_activations(model, tmp_path, 10**7) as cache:
        for _ in range(2):
            assert_close(outcome(model, batch()), expected, 1e-5)
    assert cache.read == 3


def test_dropout_in_the_adapters_draws_the_same_numbers(tmp_path):
    model = adapted(lora_dropout=0.3)
    torch.manual_seed(5)
    expected = outcome(model, batch())
    torch.manual_seed(5)
    with cached_activations(model, tmp_path, 10**7):
        assert_close(outcome(model, batch()), expected, 1e-5)


def said(model, tmp_path):
    words = []
    with cached_activations(model, tmp_path / "none", 10**7, words.append) as cache:
        model(**batch())
    assert cache is None
    assert not (tmp_path / "none").exists()
    return words[0]


def test_says_why_there_is_nothing_to_cache(tmp_path):
    assert "first decoder layer" in said(adapted(layers=(0, 3)), tmp_path)
    trained = adapted()
    trained.get_input_embeddings().weight.requires_grad_()
    assert "embed_tokens, below the adapted layers, is trained" in said(trained, tmp_path)
    assert "no decoder layer is adapted" in said(adapted_head(), tmp_path)
    prompts = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    assert "prompt" in said(get_peft_model(FAMILIES["llama"](), prompts), tmp_path)


def adapted_head():
    torch.manual_seed(0)
    return get_peft_model(FAMILIES["llama"](), LoraConfig(target_modules=["lm_head"])).train()


@pytest.mark.parametrize(
    "make",
    [
        lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, attention_dropout=0.001)),
        lambda: GPT2LMHeadModel(GPT2Config(**GPT2, attn_pdrop=0.0, resid_pdrop=0.0)),
    ],
)
def test_dropout_below_the_adapters_is_refused(make, tmp_path):
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["q_proj", "c_attn"], layers_to_transform=[3])
    assert "dropout" in said(get_peft_model(make(), config).train(), tmp_path)


def test_layers_that_do_more_than_hand_on_their_states_are_found_out(tmp_path):
    def hook_up(other_states):
        model = adapted()
        layers = model.get_base_model().model.layers
        kept = {}
        layers[0].register_forward_hook(lambda module, args, output: kept.update(first=output))
        layers[3].register_forward_hook(lambda module, args, output: output + other_states(kept))
        layers[3].register_forward_hook(lambda *_: kept.clear())
        return model

    assert "more than hand on" in said(hook_up(lambda kept: kept.get("first", 0)), tmp_path)
    assert "cannot be run in parts: KeyError" in said(hook_up(lambda kept: kept["first"]), tmp_path)


def interrupt(*_):
    raise KeyboardInterrupt


def test_the_model_is_left_as_it_was(tmp_path):
    model = adapted(layers=(2, 3))
    frozen = next(p for n, p in model.named_parameters() if "lora_A" in n)
    frozen.requires_grad_(False)  # stays so, although adapters are turned off and on meanwhile
    model.get_base_model().model.layers[3].eval()
    inner = model.get_base_model().model
    before = (
        [id(module) for module in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [m.training for m in model.modules()],
        torch.get_rng_state().tolist(),
        set(vars(inner)),
    )
    with cached_activations(model, tmp_path, 10**7):
        model(**batch())
        broken = inner.layers[3].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(**batch())
        assert len({id(layer) for layer in inner.layers} & set(before[0])) == 4
        broken.remove()
    assert before == (
        [id(module) for module in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [m.training for m in model.modules()],
        torch.get_rng_state().tolist(),
        set(vars(inner)),
    )


def test_generation_saving_and_padding_on_the_left_see_the_whole_model(tmp_path):
    model = adapted().eval()
    prompt = batch((6,), 6)["input_ids"]
    expected = model.generate(input_ids=prompt, max_new_tokens=6, do_sample=False)
    left = {"input_ids": batch()["input_ids"], "attention_mask": batch()["attention_mask"].flip(1)}
    logits = model(**left).logits
    with cached_activations(model, tmp_path, 10**7) as cache:
        assert torch.equal(model.generate(input_ids=prompt, max_new_tokens=6, do_sample=False), expected)
        assert torch.equal(model(**left).logits, logits)
        assert len(model.get_base_model().model.layers) == 4
        assert len(model(**batch(), output_hidden_states=True).hidden_states) == 5
        assert (cache.computed, cache.read) == (0, 0)
        assert cache.whole == 8
        model.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter/adapter_model.safetensors").exists()


def test_the_bound_holds_and_numbers_do_not_depend_on_it(tmp_path):
    model, words = adapted(), []
    with cached_activations(model, tmp_path / "large", 10**7):
        expected = outcome(model, batch())
    bound = 2 * 4096
    with cached_activations(model, tmp_path / "small", bound, words.append) as cache:
        for _ in range(2):
            assert all(torch.equal(a, b) for a, b in zip(outcome(model, batch()), expected, strict=True))
    assert (cache.computed, cache.read, cache.unkept) == (4, 2, 2)
    assert len(words) == 2
    assert "2 of 6 times" in words[1]
    assert "full" in words[1]
    assert taken(tmp_path / "small") <= bound


def taken(folder):
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.glob("*/??/*"))


def test_runs_share_a_folder_and_other_bases_or_layers_do_not_meet(tmp_path):
    for model, read in ((adapted(), 0), (adapted(method="qtha"), 3), (adapted(layers=(3,)), 0), (adapted(), 3)):
        with cached_activations(model, tmp_path, 10**7) as cache:
            outcome(model, batch())
        assert (cache.read, cache.computed) == (read, 3 - read)
    other = adapted()
    with torch.no_grad():
        other.get_base_model().model.layers[1].mlp.up_proj.weight[0, 0] += 1e-3
    with cached_activations(other, tmp_path, 10**7) as cache:
        outcome(other, batch())
    assert cache.read == 0


def test_damaged_files_are_made_again(tmp_path):
    model = adapted()
    with cached_activations(model, tmp_path, 10**7):
        expected = outcome(model, batch())
    files = sorted(tmp_path.glob("*/??/*"))
    files[0].write_bytes(files[0].read_bytes()[:-3])
    turned = bytearray(files[1].read_bytes())
    turned[-40] ^= 1
    files[1].write_bytes(turned)
    for computed in (2, 0):
        with cached_activations(model, tmp_path, 10**7) as cache:
            found = outcome(model, batch())
        assert cache.computed == computed
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_full_disk_ends_the_keeping_and_not_the_training(tmp_path, monkeypatch):
    model, words = adapted(), []
    expected = outcome(model, batch())

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with cached_activations(model, tmp_path, 10**7, words.append) as cache:
        assert_close(outcome(model, batch()), expected, 1e-5)
    assert cache.unkept == 3
    assert "No space left" in words[-1]


def test_a_folder_that_cannot_be_made_turns_it_off(tmp_path):
    words = []
    (tmp_path / "file").write_text("")
    with cached_activations(adapted(), tmp_path / "file", 10**7, words.append) as cache:
        assert cache is None
    assert "cannot be written" in words[0]


def test_several_processes_go_without(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    assert "more than one process" in said(adapted(), tmp_path)


def fill(folder, start):
    store = ActivationStore(folder, "same", 12 * 4096)
    for number in range(start, start + 12):
        store.put(f"{number % 16:02d}", torch.full((4, 8), float(number % 16)))


def test_processes_keep_one_bound_together(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=fill, args=(tmp_path, start)) for start in (0, 4, 8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    (tmp_path / "same/.part-1").write_bytes(b"left by a killed process")
    store = ActivationStore(tmp_path, "same", 12 * 4096)
    assert not (tmp_path / "same/.part-1").exists()
    files = list(tmp_path.glob("same/??/*"))
    assert len(files) == 12
    assert all(torch.equal(store.get(file.name), torch.full((4, 8), float(file.name))) for file in files)


def values(base, folder, **changes):
    adapter = {"method": "lora", "r": 2, "target_modules": ["q_proj"], "layers_to_transform": [2], "lora_dropout": 0.1}
    return recipe_values(
        base, folder, adapter=adapter, training__cache_activations="50MB",
        training__gradient_accumulation_steps=2, training__per_device_train_batch_size=2, **changes
    )  # fmt: skip


@pytest.fixture(scope="module")
def deeper(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("base") / "three-layers", num_hidden_layers=3)


def bytes_and_losses(path):
    folder = RunFolder(path)
    losses = [line[key] for line in read_metrics(folder.metrics) for key in ("loss", "eval_loss") if key in line]
    return (folder.adapter / "adapter_model.safetensors").read_bytes(), losses


def test_a_run_by_recipe_with_it_equals_one_without_and_repeats_exactly(deeper, tmp_path):
    words = []
    without = train(make_recipe(values(deeper, tmp_path / "without", training__tensorboard=False),
                                ["training.cache_activations=null"]))  # fmt: skip
    bases = BaseModels(keep=True)
    for name, shared in (("own", None), ("shared", tmp_path / "cache"), ("again", tmp_path / "cache")):
        recipe = make_recipe(values(deeper, tmp_path / name))
        result = train(recipe, say=words.append, bases=bases, activations=shared)
        bases.release()
        assert result.train_loss == pytest.approx(without.train_loss, rel=1e-4)
        assert result.eval_loss == pytest.approx(without.eval_loss, rel=1e-4)
        assert not (tmp_path / name / "activations").exists()
    assert bytes_and_losses(tmp_path / "own") == bytes_and_losses(tmp_path / "shared")
    assert bytes_and_losses(tmp_path / "own") == bytes_and_losses(tmp_path / "again")
    assert sum("activations below layer 2 of 3" in word for word in words) == 3
    assert len(list((tmp_path / "cache").glob("*/??/*"))) == 28


def test_a_stopped_run_goes_on_with_what_was_kept(deeper, tmp_path):
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 3:
                raise KeyboardInterrupt

    train(make_recipe(values(deeper, tmp_path / "straight")))
    recipe = make_recipe(values(deeper, tmp_path / "stopped"))
    with pytest.raises(KeyboardInterrupt):
        train(recipe, callbacks=[Stop()])
    assert list((tmp_path / "stopped/activations").glob("*/??/*"))
    more = make_recipe(values(deeper, tmp_path / "stopped"), ["training.cache_activations=60MB"])
    train(more, resume=True)
    assert bytes_and_losses(tmp_path / "stopped") == bytes_and_losses(tmp_path / "straight")
    assert not (tmp_path / "stopped/activations").exists()
    assert json.loads((tmp_path / "stopped/result.json").read_text())


def test_amounts_of_disk_space(deeper, tmp_path):
    assert bytes_of("1.5GiB") == 1.5 * 2**30
    assert bytes_of("500 MB") == 5e8
    for wrong in ("much", "0GB", "-1GB", "nanGB", "12"):
        with pytest.raises(InputError, match="cache_activations"):
            make_recipe(values(deeper, tmp_path / "run"), [f"training.cache_activations={wrong!r}"])
    with pytest.raises(InputError, match="cache_activations"):
        make_recipe(values(deeper, tmp_path / "run"), ["training.cache_activations=true"])


def test_a_model_loaded_from_a_folder_with_some_layers_trained_and_no_adapter(llama_base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(llama_base, dtype=torch.float32).requires_grad_(False).train()
    model.model.layers[1].requires_grad_(True)
    expected = outcome(model, batch())
    with cached_activations(model, tmp_path, 10**7) as cache:
        assert_close(outcome(model, batch()), expected, 1e-5)
    assert cache.frozen.count == 1
