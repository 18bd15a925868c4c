"""Every method at a count asked for: the count is real, the scale stays, the start is the base model."""

import warnings

import pytest
import torch
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from tiny_empty import TARGETS, empty_llama, full_llama

from qpeft.compare.counting import count_trained
from qpeft.compare.knobs import KNOBS
from qpeft.compare.matching import match_count
from qpeft.errors import InputError
from qpeft.training.recipe import AdapterSection


@pytest.fixture(scope="module")
def model():
    return empty_llama()


def section_of(method):
    scale = {"lora": {"r": 4, "lora_alpha": 6}, "loha": {"r": 4, "alpha": 6}, "lokr": {"r": 4, "alpha": 6}}
    return {"method": method, "target_modules": TARGETS, **scale.get(method, {})}


def built(section):
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(full_llama(), AdapterSection(**section).build())


@pytest.mark.parametrize("target", [700, 3000])
@pytest.mark.parametrize("method", sorted(KNOBS))
def test_the_count_is_that_of_the_real_adapter(method, target, model):
    match = match_count(section_of(method), target, model)
    adapter = built(match.section)
    assert match.count == sum(p.numel() for p in adapter.parameters() if p.requires_grad)
    assert match.difference == match.count - target
    if KNOBS[method].values == "rising" and KNOBS[method].key is not None and method != "lokr":
        knob = KNOBS[method]
        for step in (-knob.step, knob.step):  # no neighbour comes nearer
            value = match.section[knob.key] + step
            other = {**match.section, knob.key: value, **knob.follows(value)}
            other.pop("rank_pattern", None)
            if value >= knob.lowest:
                assert abs(count_trained(model, other) - target) >= abs(match.difference)


@pytest.mark.parametrize("method", sorted(KNOBS))
def test_every_method_starts_as_the_base_model_and_learns(method, model):
    ids = torch.randint(4, 64, (2, 7), generator=torch.Generator().manual_seed(0))
    adapter = built(match_count(section_of(method), 864, model).section)
    with torch.no_grad():
        torch.testing.assert_close(adapter.eval()(ids).logits, full_llama()(ids).logits, rtol=0, atol=1e-6)
    optimizer = torch.optim.Adam([p for p in adapter.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = adapter(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("target", range(504, 1600, 197))
def test_lora_comes_nearer_than_half_of_one_modules_rank_with_one_scale(target, model):
    match = match_count(section_of("lora"), target, model)
    assert abs(match.difference) <= (48 + 24) // 2  # v_proj: 48 -> 24; q_proj costs 96 a rank
    layers = [layer for layer in built(match.section).modules() if isinstance(layer, LoraLayer)]
    assert len(layers) == 6
    assert {layer.scaling["default"] for layer in layers} == {1.5}
    ranks = {layer.r["default"] for layer in layers}
    assert max(ranks) - min(ranks) <= 1


def test_further_ranks_are_spread_over_the_layers(model):
    match = match_count(section_of("lora"), 504 + 96 + 72, model)
    assert match.section["rank_pattern"] == {
        "model.layers.1.self_attn.q_proj": 2,
        "model.layers.1.self_attn.v_proj": 2,
    }
    assert match.section["alpha_pattern"] == dict.fromkeys(match.section["rank_pattern"], 3)
    assert match.sentence() == "672 trained numbers, exactly as many; r = 1, and 2 on 2 modules"


def test_what_cannot_match_says_the_nearest(model):
    match = match_count(section_of("lora"), 100, model)
    assert (match.section["r"], match.count, match.matches) == (1, 504, False)
    assert "rank_pattern" not in match.section
    assert match.sentence() == ("cannot match: the nearest is 504 trained numbers, 404 more than 100 (404 %); r = 1")
    match = match_count(section_of("ia3"), 1000, model)
    assert match.sentence().startswith("cannot match: the nearest is 216 trained numbers, 784 fewer than 1,000 (78 %)")
    assert "no size to choose" in match.note


def test_modules_trained_whole_are_counted(model):
    section = {**section_of("lora"), "modules_to_save": ["lm_head"]}
    assert match_count(section, 5000, model).count - match_count(section_of("lora"), 5000 - 64 * 48, model).count == (
        64 * 48
    )


def test_methods_and_targets_that_are_not_there_are_refused(model):
    with pytest.raises(InputError, match="size of method 'orthogonal' is not known here; there are: c3a"):
        match_count({"method": "orthogonal"}, 100, model)
    with pytest.raises(InputError, match="'fourierf' is not known here; did you mean fourierft"):
        match_count({"method": "fourierf"}, 100, model)
    with pytest.raises(InputError, match="does not fit the model: No layers"):
        match_count({"method": "vera", "target_modules": ["q_prj"]}, 100, model)
    with pytest.raises(InputError, match="does not fit the model"):
        match_count({"method": "oft", "target_modules": ["q_prj"]}, 100, model)
