"""A whole training run through the library: what it learns, what it leaves behind, what it refuses."""

import importlib.util
import json
import shutil
from importlib import metadata

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from qpeft.errors import InputError
from qpeft.training import RunFolder, dry_run, load_recipe, make_recipe, run, train
from qpeft.training.run_folder import read_metrics
from tiny_base import recipe_values


@pytest.fixture(scope="module")
def learned(llama_base, tmp_path_factory):
    """A run that has something to learn: one question with one answer, thirty times over."""
    folder = tmp_path_factory.mktemp("learned")
    data = folder / "data.jsonl"
    row = {"prompt": "Say it.", "completion": "aaaa"}
    data.write_text("".join(json.dumps({**row, "prompt": f"{i}: Say it."}) + "\n" for i in range(30)))
    recipe = make_recipe(
        recipe_values(
            llama_base, folder / "run",
            adapter={"method": "qtha", "r": 4, "bond_dim": 4, "inner_features": 16, "alpha": 64,
                     "target_modules": ["q_proj", "v_proj", "o_proj", "down_proj"]},
            data={"train": str(data), "max_length": 100, "validation_fraction": 0.2},
            training={"learning_rate": 3e-2, "num_train_epochs": 5, "per_device_train_batch_size": 8,
                      "save_steps": 10, "eval_steps": None},
        )
    )  # fmt: skip
    return train(recipe), RunFolder(folder / "run"), recipe


def test_the_loss_falls(learned):
    result, folder, _ = learned
    losses = [line["loss"] for line in read_metrics(folder.metrics) if "loss" in line]
    assert len(losses) == result.steps == 15
    assert result.train_loss < 0.7 * losses[0]
    assert result.eval_loss < 0.7 * losses[0]


def test_the_run_folder_holds_everything_to_repeat_and_judge_it(learned, llama_base):
    result, folder, recipe = learned
    assert load_recipe(folder.recipe) == recipe
    versions = json.loads(folder.versions.read_text())
    assert versions["packages"]["torch"] == metadata.version("torch")
    stored = json.loads(folder.result.read_text())["training"]
    assert stored["train_loss"] == result.train_loss
    assert stored["parameters"]["total"] == result.parameters["total"]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama_base), folder.adapter)
    assert sum(p.numel() for name, p in model.named_parameters() if "qtha_" in name) == result.parameters["total"]
    assert (folder.adapter / "tokenizer.json").exists()
    steps = [path.name for path in folder.complete_checkpoints()]
    assert steps == ["checkpoint-10", "checkpoint-15"]
    events = list(folder.tensorboard.glob("events.out.tfevents.*"))
    assert events
    assert not list(folder.checkpoints.glob("runs"))


def test_metric_lines_hold_step_loss_and_speed(learned):
    _, folder, _ = learned
    lines = read_metrics(folder.metrics)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 16))
    for line in lines:
        if "loss" in line:
            assert {"loss", "grad_norm", "learning_rate", "num_tokens", "tokens_per_second", "seconds"} <= set(line)
            assert line["tokens_per_second"] > 0
    assert [line["step"] for line in lines if "eval_loss" in line] == [15]
    tokens = [line["num_tokens"] for line in lines if "loss" in line]
    assert tokens == sorted(tokens)
    assert tokens[0] > 0


def test_tensorboard_holds_the_losses(learned):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, folder, _ = learned
    events = EventAccumulator(str(folder.tensorboard))
    events.Reload()
    read = [event.step for event in events.Scalars("train/loss")]
    assert read == list(range(1, 16))


def test_a_run_without_tensorboard_installed_trains_and_says_so(llama_base, tmp_path, monkeypatch, caplog):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: find_spec(name) if name != "tensorboard" else None)
    recipe = make_recipe(recipe_values(llama_base, tmp_path / "run", training__max_steps=1))
    with caplog.at_level("INFO", logger="qpeft"):
        train(recipe)
    assert "pip install qpeft[tensorboard]" in caplog.text
    assert not RunFolder(recipe.output).tensorboard.exists()


def test_a_dry_run_writes_nothing_and_counts_the_steps(llama_base, tmp_path):
    values = recipe_values(llama_base, tmp_path / "run")
    values["training"] |= {"max_steps": -1, "num_train_epochs": 1.5, "gradient_accumulation_steps": 2}
    ready = dry_run(make_recipe(values))
    assert not (tmp_path / "run").exists()
    # 24 samples in steps of 4 x 2: 3 steps an epoch
    assert ready.steps == 5
    assert train(make_recipe(values)).steps == 5
    assert ready.parameters == json.loads((tmp_path / "run/result.json").read_text())["training"]["parameters"]


def test_an_existing_run_is_left_alone_unless_asked(llama_base, tmp_path):
    recipe = make_recipe(recipe_values(llama_base, tmp_path / "run", training__max_steps=2))
    train(recipe)
    before = (tmp_path / "run/metrics.jsonl").read_text()
    with pytest.raises(InputError) as caught:
        train(recipe)
    assert all(way in str(caught.value) for way in ("--resume", "--overwrite", "output"))
    assert (tmp_path / "run/metrics.jsonl").read_text() == before
    (tmp_path / "run/notes.txt").write_text("mine")
    (tmp_path / "run/answers.jsonl").write_text("{}")
    train(recipe, overwrite=True)
    assert (tmp_path / "run/metrics.jsonl").read_text() != before
    assert (tmp_path / "run/notes.txt").read_text() == "mine"
    assert not (tmp_path / "run/answers.jsonl").exists()


def test_a_recipe_that_cannot_be_used_does_not_cost_the_earlier_run(llama_base, tmp_path):
    recipe = make_recipe(recipe_values(llama_base, tmp_path / "run", training__max_steps=2))
    train(recipe)
    broken = make_recipe(recipe_values(llama_base, tmp_path / "run", data__train=str(tmp_path / "none.jsonl")))
    with pytest.raises(InputError, match=r"none\.jsonl"):
        train(broken, overwrite=True)
    assert (tmp_path / "run/adapter/adapter_model.safetensors").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_things_is_left_alone(llama_base, tmp_path, overwrite):
    foreign = tmp_path / "run" / "checkpoints" / "checkpoint-100"
    foreign.mkdir(parents=True)
    (foreign / "weights.bin").write_text("precious")
    with pytest.raises(InputError, match="holds checkpoints but no run"):
        train(make_recipe(recipe_values(llama_base, tmp_path / "run")), overwrite=overwrite)
    assert (foreign / "weights.bin").read_text() == "precious"


def test_a_refused_run_leaves_no_folder(llama_base, tmp_path):
    values = recipe_values(llama_base, tmp_path / "run", adapter__target_modules=["q_projj"])
    with pytest.raises(InputError, match=r"q_projj.*q_proj"):
        train(make_recipe(values))
    assert not (tmp_path / "run").exists()


def learning_rates(folder):
    state = torch.load(folder / "optimizer.pt", weights_only=True)
    return [(len(group["params"]), group["initial_lr"], group["weight_decay"]) for group in state["param_groups"]]


def test_angles_may_have_their_own_learning_rate(llama_base, tmp_path):
    values = recipe_values(llama_base, tmp_path / "run", training__angle_learning_rate=0.5, training__weight_decay=0.1)
    train(make_recipe(values))
    groups = learning_rates(tmp_path / "run/checkpoints/checkpoint-6")
    assert [group[1:] for group in groups] == [(1e-2, 0.1), (0.5, 0.0)]
    assert groups[1][0] == 2  # one leaf of angles for each of the two layers
    plain = recipe_values(llama_base, tmp_path / "plain", training__weight_decay=0.1)
    train(make_recipe(plain))

    def adapter(name):
        return load_file(tmp_path / name / "adapter/adapter_model.safetensors")

    with_own, without = adapter("run"), adapter("plain")
    angles = [key for key in with_own if "qtha_circuit" in key]
    assert angles
    # the first steps of Adam move each number by about its learning rate
    for key in angles:
        assert (with_own[key] - without[key]).abs().max() > 0.2


@pytest.mark.parametrize("adapter", [{"method": "lora", "target_modules": ["q_proj"]}, {"arch": "mpo", "r": 2}])
def test_an_angle_learning_rate_without_angles_is_refused(llama_base, tmp_path, adapter):
    values = recipe_values(llama_base, tmp_path / "run", adapter=adapter, training__angle_learning_rate=0.5)
    with pytest.raises(InputError, match=r"angle_learning_rate is 0\.5.*no angles"):
        dry_run(make_recipe(values))


def test_angles_stay_as_they_start_at_a_learning_rate_of_zero(llama_base, tmp_path):
    values = recipe_values(llama_base, tmp_path / "run", training__angle_learning_rate=0)
    ready = run.prepare(make_recipe(values))
    model = ready.model
    start = {name: value.clone() for name, value in model.state_dict().items() if "qtha_circuit" in name}
    assert len(start) == 2
    model.set_adapter("default")
    model.set_requires_grad("default")
    frozen = [name for name, value in model.named_parameters() if "qtha_circuit" in name and not value.requires_grad]
    assert frozen == list(start)
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert trained
    assert all("qtha_encoder" in name or "qtha_decoder" in name for name in trained)
    result = train(make_recipe(values))
    saved = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    for name, angles in start.items():
        assert torch.equal(saved[name.replace(".default", "")], angles)
    parameters = result.parameters
    assert parameters["angles"] == 0
    assert parameters["total"] == sum(parameters[kind] for kind in ("tensor_network", "linear", "classical"))
    assert parameters["total"] == sum(value.numel() for value in saved.values()) - 2 * 4 * 2
    assert len(learning_rates(tmp_path / "run/checkpoints/checkpoint-6")) == 1


def test_frozen_angles_survive_a_resume(llama_base, tmp_path):
    def outcome(name):
        return (tmp_path / name / "adapter/adapter_model.safetensors").read_bytes()

    def recipe(name):
        return make_recipe(recipe_values(llama_base, tmp_path / name, training__angle_learning_rate=0))

    train(recipe("straight"))
    train(recipe("run"))
    folder = tmp_path / "run"
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "adapter")
    shutil.rmtree(folder / "checkpoints/checkpoint-6")
    train(recipe("run"), resume=True)
    assert outcome("run") == outcome("straight")


def test_lora_starts_with_a_multiple_of_its_random_a(llama_base, tmp_path):
    def prepared(**adapter):
        adapter = {"method": "lora", "r": 2, "target_modules": ["q_proj"], **adapter}
        return run.prepare(make_recipe(recipe_values(llama_base, tmp_path / "run", adapter=adapter))).model

    plain, larger = (prepared(**each).state_dict() for each in ({}, {"initial_gain": 6**0.5}))
    for name, value in plain.items():
        torch.testing.assert_close(larger[name], value * 6**0.5 if "lora_A" in name else value)
    limit = (6 / 32) ** 0.5  # of a Kaiming uniform start with a = 0 and 32 inputs, as QTHA's
    largest = max(value.abs().max() for name, value in larger.items() if "lora_A" in name)
    assert 0.9 * limit < largest <= limit


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"method": "qtha", "initial_gain": 2}, "does not go with method qtha"),
        (
            {"method": "lora", "init_lora_weights": "pissa", "initial_gain": 2},
            "does not go with init_lora_w",
        ),
        ({"method": "lora", "initial_gain": 0}, "greater than 0"),
        ({"method": "lora", "initial_gain": float("inf")}, "finite"),
    ],
)
def test_an_initial_gain_needs_an_a_that_is_drawn(llama_base, tmp_path, adapter, message):
    with pytest.raises(InputError, match=message):
        make_recipe(recipe_values(llama_base, tmp_path / "run", adapter=adapter))


def test_lora_trains_by_the_same_recipe(llama_base, tmp_path):
    adapter = {"method": "lora", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    result = train(make_recipe(recipe_values(llama_base, tmp_path / "run", adapter=adapter)))
    # q: 32 -> 32, v: 32 -> 16, two layers
    assert result.parameters == {"total": 2 * 2 * ((32 + 32) + (32 + 16))}


def test_a_classifier_trains_on_an_encoder(bert_base, tmp_path):
    data = tmp_path / "data.jsonl"
    rows = [{"text": "good " * (i % 5 + 1) if i % 2 else "bad " * (i % 5 + 1), "label": i % 2} for i in range(40)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = recipe_values(
        bert_base, tmp_path / "run",
        adapter={"method": "qtha", "r": 2, "bond_dim": 2, "inner_features": 8, "target_modules": ["query", "value"]},
        data={"train": str(data), "max_length": 64, "validation_fraction": 0.2},
        training__learning_rate=2e-2, training__max_steps=30, training__per_device_train_batch_size=8,
    )  # fmt: skip
    values["model"] |= {"task": "sequence-classification", "num_labels": 2}
    result = train(make_recipe(values))
    losses = [line["loss"] for line in read_metrics(tmp_path / "run/metrics.jsonl") if "loss" in line]
    assert result.train_loss < 0.5 * losses[0]
    assert result.tokens_per_second > 0
    # the head is trained and counted beside the adapter
    assert result.parameters["total"] == sum(result.parameters[k] for k in ("tensor_network", "linear", "angles")) + 50


def test_a_label_that_is_no_class_is_named(bert_base, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": f"t{i}", "label": i}) + "\n" for i in range(6)))
    values = recipe_values(bert_base, tmp_path / "run", adapter={"target_modules": ["query"], "r": 2},
                           data={"train": str(data)})  # fmt: skip
    values["model"] |= {"task": "sequence-classification"}
    with pytest.raises(InputError, match="not a class between 0 and 1"):
        dry_run(make_recipe(values))
