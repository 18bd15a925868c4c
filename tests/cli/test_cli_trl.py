"""`qpeft sft`, `dpo` and `grpo`, from the command line to the saved adapter."""

import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import qpeft as library
from qpeft.training import trl_run
from qpeft.training.trl_arguments import help_text, read_arguments

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "trl").glob("*.yaml"))
GENERATING = ["--reward_funcs", "exact_answer", "--num_generations", "2", "--max_completion_length", "4"]


@pytest.fixture
def trl(qpeft, llama_base, tmp_path, monkeypatch):
    """Run one of the commands for two steps on the tiny model; keyword arguments are further keys."""
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")

    def command(kind, *further, output="run", steps=2):
        common = [
            "--model_name_or_path", llama_base, "--dataset_name", "arithmetic", "--arithmetic_problems", 8,
            "--arithmetic_steps", 1, "--system", "", "--adapter.r", 2, "--adapter.bond_dim", 2,
            "--adapter.inner_features", 8, "--adapter.target_modules", "q_proj", "v_proj", "--learning_rate", "1e-2",
            "--per_device_train_batch_size", 2, "--max_steps", steps, "--logging_steps", 1, "--output_dir",
            tmp_path / output,
        ]  # fmt: skip
        return qpeft(kind, *common, *(GENERATING if kind == "grpo" else []), *further)

    return command


def reloads(folder, base):
    """The saved adapter, on its base; it must have learned something."""
    model = library.load(folder)
    ids = torch.arange(20).unsqueeze(0)
    with torch.no_grad():
        changed = (model(ids).logits - AutoModelForCausalLM.from_pretrained(base)(ids).logits).abs().max()
    assert changed > 1e-4
    return model


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_trains_saves_and_reloads(trl, llama_base, tmp_path, kind):
    said = trl(kind, "--report_to", "tensorboard", "--json")
    assert said.code == 0, said.err
    assert said.json["steps"] == 2
    model = reloads(tmp_path / "run", llama_base)
    assert said.json["parameters"]["total"] == sum(
        parameter.numel() for name, parameter in model.named_parameters() if "qtha" in name
    )
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))
    card = (tmp_path / "run" / "README.md").read_text()
    assert "import qpeft" in card
    assert f"- {kind}" in card
    assert "learning_rate: 0.01" in card
    assert json.loads((tmp_path / "run" / "trainer_state.json").read_text())["global_step"] == 2


def test_grpo_learns_from_a_reward_of_ones_own(trl, llama_base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two_rewards.py").write_text(  # a random model never answers right, and equal rewards teach nothing
        "def alphabet(completions, answer, **_):\n"
        "    assert len(answer) == len(completions)\n"
        "    return [float(sum(map(ord, text[0]['content'])) % 7) for text in completions]\n"
    )
    said = trl("grpo", "--reward_funcs", "exact_answer", "two_rewards.alphabet", "--json")
    assert said.code == 0, said.err
    assert said.json["metrics"]["rewards/exact_answer/mean"] == 0.0
    assert said.json["metrics"]["rewards/alphabet/mean"] > 0
    reloads(tmp_path / "run", llama_base)


def test_push_to_hub_sends_the_adapter_with_its_card(trl, monkeypatch):
    sent = []

    class Hub:
        def create_repo(self, name, **_):
            return SimpleNamespace(repo_id=f"someone/{name}")

        def upload_folder(self, *, repo_id, folder_path, **_):
            names = {path.name for path in Path(folder_path).iterdir()}
            sent.append((repo_id, names, (Path(folder_path) / "README.md").read_text()))

    monkeypatch.setattr("transformers.trainer.hf_api", Hub)
    said = trl("sft", "--push_to_hub", "--hub_token", "hf_secret", "--save_strategy", "no", steps=1)
    assert said.code == 0, said.err
    repo, names, card = sent[-1]
    assert repo == "someone/run"
    assert {"adapter_model.safetensors", "adapter_config.json"} <= names
    assert "import qpeft" in card
    assert "hf_secret" not in card + said.out + said.err


def test_a_gradient_that_is_no_number_ends_the_run(trl, tmp_path):
    said = trl("sft", "--learning_rate", "1e30", steps=4)
    assert said.code == 1
    assert "lower learning_rate" in said.err
    assert not (tmp_path / "run" / "adapter_model.safetensors").exists()


def test_lora_may_start_with_a_multiple_of_its_random_a(qpeft, llama_base, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")

    def first(gain):
        folder = tmp_path / f"gain{gain}"
        said = qpeft(
            "sft", "--method", "lora", "--adapter.r", 2, "--adapter.target_modules", "q_proj",
            "--adapter.initial_gain", gain, "--model_name_or_path", llama_base, "--dataset_name", "arithmetic",
            "--arithmetic_problems", 4,
            "--arithmetic_steps", 1, "--learning_rate", "1e-12", "--max_steps", 1, "--output_dir", folder,
        )  # fmt: skip
        assert said.code == 0
        values = load_file(folder / "adapter_model.safetensors")
        return {name: value for name, value in values.items() if "lora_A" in name}

    one, three = first(1), first(3)
    assert one
    for name, value in one.items():
        torch.testing.assert_close(three[name], 3 * value)


def test_weights_beyond_the_memory_are_refused_before_they_are_loaded(trl, tmp_path, monkeypatch):
    """Of the tiny model, in the 4 and in the 2 bytes of a number."""
    monkeypatch.setattr("qpeft.training.memory_check.available_bytes", lambda _: 80_000.0)
    monkeypatch.setattr(trl_run, "load_model", lambda *_, **__: pytest.fail("loaded"))
    said = trl("sft")
    assert said.code == 2
    assert "the weights alone need about 0.00 GB" in said.err
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    monkeypatch.setattr("qpeft.training.memory_check.available_bytes", lambda _: 80_000.0)
    assert trl("sft", "--dtype", "bfloat16", steps=1).code == 0


def test_any_method_of_peft(trl, llama_base, tmp_path):
    said = trl("sft", "--method", "lora", "--adapter.bond_dim", "3", steps=1)
    assert said.code == 2
    assert "unknown key adapter.bond_dim for method lora" in said.err
    config = tmp_path / "lora.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "model_name_or_path": str(llama_base),
                "dataset_name": "arithmetic",
                "arithmetic_problems": 4,
                "output_dir": str(tmp_path / "lora"),
                "max_steps": 1,
                "learning_rate": 0.5,
                "eval_strategy": False,
                "adapter": {"method": "lora", "r": 2, "target_modules": ["q_proj"]},
            }
        )
    )
    read = read_arguments("sft", ["--config", str(config), "--learning_rate=1e-3", "--adapter.r=3"])
    assert read.adapter.fields["target_modules"] == ["q_proj"]
    for words, value in ((["q_proj"], ["q_proj"]), (["all-linear"], "all-linear"), ([".*q_proj"], ".*q_proj")):
        given = read_arguments("sft", ["--adapter.target_modules", *words]).adapter.fields["target_modules"]
        assert given == value
    assert (read.training.learning_rate, read.training.max_steps, read.adapter.fields["r"]) == (1e-3, 1, 3)


def test_resume_goes_on_as_if_it_had_not_stopped(trl, qpeft, tmp_path):
    steps = ["--lr_scheduler_type", "constant", "--save_steps", 1]
    assert trl("sft", *steps, output="whole", steps=3).code == 0
    assert trl("sft", *steps, output="parts", steps=2).code == 0
    again = trl("sft", *steps, output="parts", steps=3)
    assert again.code == 2
    assert "already holds a run" in again.err
    assert trl("sft", *steps, "--resume_from_checkpoint", "last", output="parts", steps=3).code == 0
    whole, parts = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


@pytest.fixture
def reference_logits(monkeypatch):
    """Logits of the reference model of a DPO run, taken where TRL takes them, beside those of the trained one."""
    taken = []
    original = trl_run._DPO.compute_loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        from trl.trainer.utils import use_adapter

        ids = torch.arange(20).unsqueeze(0)
        adapted = self.accelerator.unwrap_model(self.model)
        with torch.no_grad(), use_adapter(adapted, "ref" if "ref" in adapted.peft_config else None):
            reference = adapted(ids).logits
        with torch.no_grad():
            taken.append((reference, adapted(ids).logits))
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(trl_run._DPO, "compute_loss", compute_loss)
    return taken


def test_reference_of_dpo_is_the_base(trl, reference_logits, llama_base):
    assert trl("dpo", steps=3).code == 0
    base = AutoModelForCausalLM.from_pretrained(llama_base)(torch.arange(20).unsqueeze(0)).logits
    for reference, _ in reference_logits:
        torch.testing.assert_close(reference, base, rtol=0, atol=0)
    assert not torch.equal(reference_logits[-1][1], base)  # while the adapter has moved


def test_reference_of_dpo_is_the_adapter_it_starts_from(trl, reference_logits, llama_base, tmp_path):
    assert trl("sft", output="first").code == 0
    started = library.load(tmp_path / "first")(torch.arange(20).unsqueeze(0)).logits
    assert trl("dpo", "--adapter.start_from", tmp_path / "first", steps=3).code == 0
    for reference, _ in reference_logits:
        torch.testing.assert_close(reference, started)
    assert not torch.allclose(reference_logits[-1][1], started)
    assert not (tmp_path / "run" / "ref").exists()
    saved = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama_base), tmp_path / "run")
    assert list(saved.peft_config) == ["default"]


@pytest.mark.parametrize(
    ("kind", "further", "part"),
    [
        ("sft", ["--learning_rat", "1"], "unknown key --learning_rat; did you mean --learning_rate?"),
        ("sft", ["--adapter.rr", "1"], "unknown key adapter.rr for method qtha; did you mean adapter.r?"),
        ("sft", ["--adapter.r", "40"], "rank must be between 1 and 20"),
        ("sft", ["--method", "lorra"], "did you mean lora?"),
        ("sft", ["--use_peft"], "--method lora"),
        ("sft", ["--learning_rate", "fast"], "invalid float value: 'fast'"),
        ("sft", ["--dataset_name", "missing.jsonl"], "missing.jsonl does not exist"),
        ("sft", ["--adapter.target_modules", "nowhere"], "not found in the base model"),
        ("sft", ["--report_to", "tensorbord"], "did you mean tensorboard?"),
        ("sft", ["--resume_from_checkpoint", "last"], "no checkpoint to go on from"),
        ("sft", ["--arithmetic_steps", "4"], "arithmetic_steps must be between 1 and 3"),
        ("grpo", ["--reward_funcs", "exact_anser"], "did you mean exact_answer?"),
        ("grpo", ["--num_generations", "3"], "must be divisible by num_generations"),
        ("grpo", ["--num_generations", "1"], "at least 2 generations"),
    ],
)
def test_bad_input_is_refused(trl, tmp_path, kind, further, part):
    said = trl(kind, *further)
    assert said.code == 2, said.err
    assert part in said.err
    assert not (tmp_path / "run").exists()


def test_grpo_without_a_reward_is_refused(qpeft, llama_base, tmp_path):
    said = qpeft("grpo", "--model_name_or_path", llama_base, "--dataset_name", "arithmetic", "--adapter.r", 2)
    assert said.code == 2
    assert "--reward_funcs exact_answer" in said.err


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("learning_rat: 1", "unknown key learning_rat; did you mean learning_rate?"),
        ("learning_rate: fast", "learning_rate cannot be 'fast'"),
        ("max_steps: [1]", "max_steps cannot be [1]"),
        ("max_steps: 1\nmax_steps: 2", "line 2"),
        ("adapter: 4", "adapter is a section"),
        ("- a", "a mapping of keys"),
    ],
)
def test_bad_config_file_is_refused(trl, tmp_path, text, part):
    file = tmp_path / "keys.yaml"
    file.write_text(text + "\n")
    said = trl("sft", "--config", file)
    assert said.code == 2, said.err
    assert part in said.err


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_recipes_are_valid_and_say_how_to_run_them(file, monkeypatch):
    monkeypatch.chdir(file.parents[2])
    text = file.read_text()
    assert text.startswith(f"# qpeft {file.stem} --config recipes/trl/{file.name}\n")
    commands = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#") and "qpeft " in line]
    for words in map(shlex.split, commands):
        if words[0] == "qpeft":
            assert read_arguments(words[1], words[2:]).training.output_dir == f"runs/trl-{file.stem}"


@pytest.mark.parametrize("kind", ["sft", "dpo", "grpo"])
def test_help_names_the_keys(kind):
    text = help_text(kind)
    assert "--learning_rate" in text
    assert "--adapter.KEY" in text
    assert "--arithmetic_problems" in text
