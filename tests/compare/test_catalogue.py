"""Arms by name: what each changes, what it counts, and what makes no sense."""

import json
import warnings
from dataclasses import asdict

import pytest
import torch
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from tiny_empty import TARGETS, empty_llama, full_llama

from qpeft import count_parameters
from qpeft.compare.catalogue import ArmSpec, build_arms, catalogue
from qpeft.compare.own_arms import OwnArm
from qpeft.errors import InputError
from qpeft.training import make_recipe
from qpeft.training.recipe import AdapterSection

ADAPTER = {"method": "qtha", "r": 3, "n_layers": 2, "alpha": 4.5, "bond_dim": 2, "inner_features": 16,
           "target_modules": TARGETS}  # fmt: skip
#: modules, angles of one
MODULES, ANGLES = 6, 4 * 3 * 2


@pytest.fixture(scope="module")
def model():
    return empty_llama()


@pytest.fixture(scope="module")
def arms(model):
    return {arm.name: arm for arm in build_arms(catalogue(), ADAPTER, model)}


def one(entry, model, adapter=ADAPTER):
    return next(arm for arm in build_arms(["adapter", entry], adapter, model) if arm.name != "adapter")


def built(section):
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(full_llama(), AdapterSection(**section).build())


def changed(arm):
    """Fields of the adapter under test that an arm sets otherwise."""
    return {key: value for key, value in arm.adapter.items() if ADAPTER.get(key) != value}


def test_every_name_gives_a_recipe_that_can_be_trained(arms):
    assert list(arms) == catalogue()
    for arm in arms.values():
        if arm.adapter is None:
            assert arm.info.kind in ("base", "evaluation")
            continue
        recipe = make_recipe({"output": "runs/x", "adapter": arm.adapter, "training": arm.training})
        adapter = get_peft_model(full_llama(), recipe.adapter.build())
        trained = sum(value.numel() for value in adapter.parameters() if value.requires_grad)
        assert arm.trainable == trained - (MODULES * ANGLES if arm.name == "frozen-circuit" else 0)


def test_arms_survive_json(arms):
    for arm in arms.values():
        assert ArmSpec.from_dict(json.loads(json.dumps(asdict(arm)))) == arm


def test_lora_has_the_same_rank_scale_and_places(arms):
    for name in ("lora", "lora-same-init", "lora-same-count", "lora-same-init-same-count"):
        layers = {
            each.removeprefix("base_model.model."): layer
            for each, layer in built(arms[name].adapter).named_modules()
            if isinstance(layer, LoraLayer)
        }
        assert len(layers) == MODULES
        assert {layer.scaling["default"] for layer in layers.values()} == {1.5}
        if "count" not in name:
            assert {layer.r["default"] for layer in layers.values()} == {3}
        assert arms[name].adapter.get("initial_gain") == (2.44949 if "init" in name else None)
    assert arms["lora"].info.kind == "reference"
    assert arms["lora"].info.note.endswith("48 trained numbers fewer (3.1 %).")
    count = arms["adapter"].trainable
    assert abs(arms["lora-same-count"].trainable - count) <= (48 + 24) / 2
    assert arms["lora-same-count"].info.kind == "matched"
    assert f"than {count:,}" in arms["lora-same-count"].info.note


def test_controls_change_one_thing(arms):
    assert changed(arms["no-circuit"]) == {"arch": "mpo", "fusion": "linear"}
    assert changed(arms["no-entanglers"]) == {"entanglement": "none"}
    assert changed(arms["classical"]) == {"arch": "mpo+pointwise", "pointwise": "silu"}
    assert changed(arms["surrogate"]) == {"arch": "mpo+pointwise", "pointwise": "sin"}
    assert changed(arms["classical-dense"]) == {"arch": "mpo+classical", "classical_layers": 2}
    assert changed(arms["frozen-circuit"]) == {}
    assert arms["frozen-circuit"].training == {"angle_learning_rate": 0}
    count = arms["adapter"].trainable
    assert {arms[name].trainable for name in ("no-entanglers", "classical", "surrogate")} == {count}
    assert arms["frozen-circuit"].trainable == count - MODULES * ANGLES
    assert arms["no-circuit"].trainable == count - MODULES * (ANGLES + 3 * 3)  # and W_q
    assert arms["classical-dense"].trainable == count - MODULES * (ANGLES - 2 * (3 * 3 + 3))
    assert arms["classical"].info.note.endswith("exactly as many trained numbers.")
    assert {name for name, arm in arms.items() if arm.info.circuit} == {"adapter", "frozen-circuit"}


def test_a_rate_for_angles_reaches_only_arms_that_have_some(arms):
    given = {name: arm.training for name, arm in arms.items() if arm.adapter is not None}
    for name, training in given.items():
        has_angles = name in ("adapter", "no-entanglers", "frozen-circuit")
        assert ("angle_learning_rate" in training) == (not has_angles or name == "frozen-circuit")
        assert has_angles or training["angle_learning_rate"] is None


def test_evaluation_arms_take_the_trained_adapter(arms):
    for name, branch in (("branch-zero", "off"), ("branch-mean", "mean")):
        assert (arms[name].of, arms[name].branch, arms[name].info.kind) == ("adapter", branch, "evaluation")
    assert arms["base"].adapter is None
    assert arms["base"].of is None


@pytest.mark.parametrize(
    ("adapter", "no_circuit", "classical"),
    [({"arch": "BC"}, "linear", "pointwise"), ({"arch": "ABC", "fusion": "product"}, "mpo", "mpo+pointwise")],
)
def test_other_wirings_get_the_controls_of_theirs(adapter, no_circuit, classical, model):
    adapter = {**ADAPTER, **adapter}
    assert one("no-circuit", model, adapter).adapter["arch"] == no_circuit
    arm = one("classical", model, adapter)
    assert arm.adapter["arch"] == classical
    assert count_parameters(built(arm.adapter)).classical == MODULES * ANGLES


def test_places_are_those_that_peft_resolved(model):
    found = one("vera-same-count", model, {**ADAPTER, "target_modules": "all-linear", "layers_to_transform": None})
    assert found.adapter["target_modules"] == [
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ]
    found = one("lora", model, {**ADAPTER, "layers_to_transform": [0, 2], "dropout": 0.1})
    assert (found.adapter["layers_to_transform"], found.adapter["lora_dropout"]) == ([0, 2], 0.1)
    assert found.trainable == 2 * 3 * ((48 + 48) + (48 + 24))
    with pytest.raises(InputError, match="arm ia3-same-count: method ia3 has no layers_to_transform"):
        one("ia3-same-count", model, {**ADAPTER, "layers_to_transform": [0]})


def test_other_methods_can_be_under_test(model):
    arms = build_arms(["adapter", "lora", "lora-same-count", "base"], {"method": "loha", "r": 2, "alpha": 6,
                      "target_modules": TARGETS}, model)  # fmt: skip
    assert arms[1].adapter["lora_alpha"] == 6
    assert arms[2].trainable == arms[0].trainable
    same = one("lora-same-count", model, {"method": "vera", "r": 200, "target_modules": TARGETS})
    assert same.adapter["lora_alpha"] / same.adapter["r"] == 2


@pytest.mark.parametrize(
    ("entry", "adapter", "message"),
    [
        ("no-entangler", {}, "there is no arm 'no-entangler'; did you mean no-entanglers"),
        ("veera-same-count", {}, "there is no arm 'veera-same-count'; did you mean vera-same-count"),
        ("no-circuit", {"arch": "mpo"}, r'arm no-circuit: .*arch="mpo"\) has no circuit'),
        ("branch-zero", {"arch": "mpo"}, "arm branch-zero: .*has no circuit"),
        ("no-entanglers", {"r": 1}, "has no entanglement"),
        ("no-entanglers", {"entanglement": "none"}, "has no entanglement"),
        ("classical", {"arch": "quantum_only"}, "has not"),
        ("classical-dense", {"fusion": "product"}, "would never learn"),
        ("lora", {"start_from": "runs/x"}, "start_from lets the adapter under test begin with trained numbers"),
        ("adapter", {}, "arms holds adapter twice"),
    ],
)
def test_arms_that_make_no_sense_are_refused(entry, adapter, message, model):
    with pytest.raises(InputError, match=message):
        build_arms(["adapter", entry], {**ADAPTER, **adapter}, model)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("classical", "arm classical: the adapter under test is of method lora and has no circuit"),
        ("lora-same-count", "is lora itself"),
        ("lora", "is LoRA itself"),
    ],
)
def test_lora_under_test_has_no_circuit(entry, message, model):
    with pytest.raises(InputError, match=message):
        build_arms([entry], {"method": "lora", "r": 2, "target_modules": TARGETS}, model)


def test_own_arms(model):
    entries = [
        "adapter",
        {"name": "small", "label": "LoRA, r = 2", "adapter": {"method": "lora", "r": 2, "target_modules": TARGETS},
         "training": {"weight_decay": 0.1}, "learning_rates": [1e-3, 1e-2]},
        {"name": "deep", "adapter": {**ADAPTER, "n_layers": 3}},
        {"name": "deep-off", "of": "deep", "branch": "off"},
        {"name": "chip", "of": "adapter", "execution": {"executor": "virtual-wukong", "shots": 100}},
        {"name": "vera-same-count", "learning_rates": [0.1]},
    ]  # fmt: skip
    small, deep, off, chip, vera = build_arms(entries, ADAPTER, model)[1:]
    assert (small.info.label, small.info.kind, small.learning_rates) == ("LoRA, r = 2", "reference", [1e-3, 1e-2])
    assert small.training == {"angle_learning_rate": None, "weight_decay": 0.1}
    assert small.trainable == 3 * 2 * ((48 + 48) + (48 + 24))
    assert (deep.info.kind, deep.info.circuit, deep.training) == ("control", True, {})
    assert (off.of, off.branch, off.info.circuit) == ("deep", "off", False)
    assert (chip.of, chip.execution["shots"], chip.info.circuit) == ("adapter", 100, True)
    assert (vera.adapter["method"], vera.learning_rates, vera.info.kind) == ("vera", [0.1], "matched")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"label": "x"}, "an arm: the key name is missing"),
        ({"name": "x"}, "arm x has neither adapter nor of"),
        ({"name": "x", "adaptor": {}}, "arm x: unknown key adaptor; did you mean adapter"),
        ({"name": "a b", "adapter": {}}, "part of file names"),
        ({"name": "lora", "adapter": {"method": "lora"}}, "arm lora is one of the catalogue"),
        ({"name": "base", "learning_rates": [1e-3]}, "arm base trains nothing"),
        ({"name": "x", "adapter": {"method": "lora", "rank": 3}}, "arm x: unknown key adapter.rank for method lora"),
        ({"name": "x", "adapter": {"method": "lora", "target_modules": ["q"]}}, "arm x: the adapter does not fit"),
        ({"name": "x", "adapter": {}, "training": {"sed": 1}}, "unknown key training.sed; did you mean training.seed"),
        ({"name": "x", "adapter": {}, "training": {"seed": 1}}, "training.seed is what the comparison varies"),
        ({"name": "x", "adapter": {}, "training": {"max_steps": "many"}}, "training.max_steps cannot be 'many'"),
        ({"name": "x", "adapter": {}, "learning_rates": []}, "learning_rates cannot be"),
        ({"name": "x", "adapter": {}, "learning_rates": [0.1, -1]}, "greater than 0"),
        ({"name": "x", "adapter": {}, "learning_rates": [0.1, 0.1]}, "a rate twice"),
        ({"name": "x", "of": "adapter"}, "give branch"),
        ({"name": "x", "branch": "off"}, "say which with of"),
        ({"name": "x", "of": "adapter", "branch": "on"}, "branch cannot be 'on'"),
        ({"name": "x", "of": "adapter", "branch": "off", "training": {"max_steps": 1}}, "leave out training"),
        ({"name": "x", "of": "adapter", "execution": {"executor": "exact"}}, "name another one than exact"),
        ({"name": "x", "of": "adapter", "execution": {"shot": 3}}, "did you mean execution.shots"),
        ({"name": "x", "of": "other", "branch": "off"}, "the arm 'other', which is not among arms"),
        ({"name": "x", "of": "no-circuit", "branch": "off"}, "the arm no-circuit run, and that has none"),
        (3, r"a mapping with a name \(got 3\)"),
    ],
    ids=str,
)  # fmt: skip
def test_own_arms_are_read_strictly(entry, message, model):
    with pytest.raises(InputError, match=message):
        build_arms(["adapter", "no-circuit", entry], ADAPTER, model)


def test_an_own_arm_is_an_adapter_or_an_evaluation():
    assert set(OwnArm.model_fields) == {
        "name",
        "label",
        "adapter",
        "training",
        "learning_rates",
        "of",
        "branch",
        "execution",
    }
