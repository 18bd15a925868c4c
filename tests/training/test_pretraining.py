"""The small Llama: what it reads, that it is made the same twice, and that nothing half-made is taken for it."""

import json
import random
import re
from itertools import islice

import pytest
import torch

from qpeft.data.arithmetic import capacity, generate
from qpeft.data.stories import TEMPLATES
from qpeft.errors import InputError, TrainingError
from qpeft.evaluation import run_task
from qpeft.models import load_model, load_tokenizer
from qpeft.training import pretraining
from qpeft.training.pretraining import Pretraining, pretrain, read_pretraining
from qpeft.training.pretraining_text import END, make_texts, train_tokenizer
from qpeft.training.recipe import make_recipe
from qpeft.training.run import train
from tiny_base import recipe_values

TINY = {"width": 16, "layers": 1, "heads": 2, "vocabulary": 300, "largest": 12, "steps": 6, "batch_size": 4}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    pretraining.TRIED, before = 4, pretraining.TRIED
    folder = pretrain(Pretraining(**TINY), tmp_path_factory.mktemp("bases") / "small")
    yield folder
    pretraining.TRIED = before


def test_only_the_train_split_is_read():
    texts = make_texts(seed=0, max_steps=1, story_steps=3, largest=15)
    read = {_bare(text.partition("\n")[0]) for text in [*texts.solved, *texts.stories]}
    for split in ("validation", "test"):
        held_out = {_bare(problem.question) for problem in generate(capacity(split, 3, 15), 0, split, 3, 15)}
        assert held_out
        assert not read & held_out


def _bare(question):
    """A question without names and words that are drawn anew each time: the story and its numbers are left."""
    drawn = {word for template in TEMPLATES for choices in template.words.values() for word in choices}
    return tuple(word for word in re.findall(r"\w+", question) if not word[0].isupper() and word not in drawn)


def test_kinds_of_text():
    texts = make_texts(seed=0, max_steps=1, story_steps=2, largest=12)
    assert all(text.endswith(END) and "\n#### " in text for text in texts.solved)
    assert all(text.count("\n") == 1 and "####" not in text for text in texts.stories)
    assert {"3+4=7", "2*6=12", "12/4=3", "9-7=2"} <= set(texts.equations)
    for equation in texts.equations:
        expression, _, result = equation.partition("=")
        assert eval(expression) == int(result)
        assert 2 <= int(result) <= 12
    drawn = list(islice(texts.draw(random.Random(0), 0.25, 0.15), 4000))
    stories = sum(text in set(texts.stories) for text in drawn)
    equations = sum("####" not in text and text.endswith(END) for text in drawn)
    assert 0.22 < stories / 4000 < 0.28
    assert 0.12 < equations / 4000 < 0.18
    first_round = [text for text in drawn if "####" in text][: len(texts.solved)]
    assert sorted(first_round) == sorted(texts.solved)


def test_tokenizer_writes_digits_alone_and_every_text_back():
    texts = make_texts(seed=0, max_steps=1, story_steps=3, largest=20)
    tokenizer = train_tokenizer(texts, 512, 256)
    assert len(tokenizer) <= 512
    assert tokenizer.eos_token == END
    assert not tokenizer.chat_template
    assert tokenizer.tokenize("12+5=17") == ["1", "2", "+", "5", "=", "1", "7"]
    for text in [*texts.stories[:50], "Größe 7 € \t"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_folder_is_an_ordinary_model(made, tmp_path):
    record = json.loads((made / "pretraining.json").read_text())
    assert record["settings"] == Pretraining(**TINY).model_dump()
    assert len(record["losses"]) == 6
    assert set(record["strict_accuracy"]) == {"1", "2", "3"}
    model, tokenizer = load_model(str(made), device="cpu"), load_tokenizer(str(made))
    assert record["parameters"] == sum(p.numel() for p in model.parameters())
    problems = [problem.to_example() for problem in generate(4, 0, "test", 1, 12)]
    assert run_task("arithmetic", model, tokenizer, problems).n == 4
    for adapter in (
        {"method": "qtha", "r": 4, "inner_features": 4, "target_modules": ["q_proj", "v_proj"]},
        {"method": "lora", "r": 4, "target_modules": "all-linear"},
    ):
        values = recipe_values(made, tmp_path / adapter["method"], training__max_steps=2, training__eval_steps=2)
        recipe = make_recipe({**values, "adapter": adapter, "data": {**values["data"], "largest": 15}})
        assert train(recipe).steps == 2


def test_same_settings_give_the_same_weights_and_leave_the_random_state(made, tmp_path):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    again = pretrain(Pretraining(**TINY), tmp_path / "again")
    assert torch.equal(before, torch.random.get_rng_state())
    assert (again / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()
    assert (again / "tokenizer.json").read_bytes() == (made / "tokenizer.json").read_bytes()
    other = pretrain(Pretraining(**{**TINY, "seed": 1}), tmp_path / "other")
    assert (other / "model.safetensors").read_bytes() != (made / "model.safetensors").read_bytes()


def test_finished_folder_is_used_again_and_another_refused(made, monkeypatch):
    monkeypatch.setattr(pretraining, "_make", lambda *_: pytest.fail("it was made again"))
    said = []
    assert pretrain(Pretraining(**TINY), made, say=said.append) == made
    assert "finished" in said[-1]
    with pytest.raises(InputError, match="was made with steps = 6, not 7"):
        pretrain(Pretraining(**{**TINY, "steps": 7}), made)


def test_the_same_model_made_elsewhere_is_copied_and_another_is_not(made, tmp_path):
    other = {**TINY, "steps": 1}
    others = [tmp_path / "missing", pretrain(Pretraining(**other), tmp_path / "other"), made]
    said = []
    copied = pretrain(Pretraining(**TINY), tmp_path / "copied", say=said.append, made=others)
    assert str(made) in said[-1]
    assert {file.name: file.read_bytes() for file in copied.iterdir()} == {
        file.name: file.read_bytes() for file in made.iterdir()
    }
    assert not list(tmp_path.glob(".copied.partial*"))


def test_changed_weights_and_foreign_folders_are_refused(tmp_path):
    settings = Pretraining(**{**TINY, "steps": 1})
    folder = pretrain(settings, tmp_path / "small")
    with open(folder / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(InputError, match="not those that were made there"):
        pretrain(settings, folder)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="no small Llama made here"):
        pretrain(settings, tmp_path / "foreign")
    assert (tmp_path / "foreign" / "thesis.txt").read_text() == "mine"


def test_stopped_half_way_leaves_nothing_and_starts_over(tmp_path):
    settings = Pretraining(**{**TINY, "steps": 3})

    def stop(step, steps, loss):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(settings, tmp_path / "small", progress=stop)
    assert not (tmp_path / "small").exists()
    (tmp_path / ".small.partial-killed").mkdir()  # what kill -9 leaves
    (tmp_path / ".small.partial-killed" / "config.json").write_text("{}")
    steps = []
    pretrain(settings, tmp_path / "small", progress=lambda step, *_: steps.append(step))
    assert steps == [1, 2, 3]
    assert not list(tmp_path.glob(".small.partial-*"))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"witdh": 64}, "unknown key pretrain.witdh; did you mean pretrain.width"),
        ({"width": 100, "heads": 8}, "width must be a multiple of 2 \\* heads = 16 \\(got 100\\)"),
        ({"vocabulary": 100}, "pretrain.vocabulary cannot be 100: input should be greater than or equal to 257"),
        ({"max_steps": 4}, "pretrain.max_steps cannot be 4"),
        ({"learning_rate": float("nan")}, "pretrain.learning_rate cannot be nan"),
        ({"steps": "many"}, "pretrain.steps cannot be 'many'"),
        ({"story_share": 0.7, "equation_share": 0.3}, "must add up to less than 1"),
    ],
)
def test_bad_settings_are_one_sentence(values, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        read_pretraining(values)
    assert "\n" not in str(caught.value)


def test_divergence_is_told(tmp_path):
    with pytest.raises(TrainingError, match=r"is (nan|inf) at step"):
        pretrain(Pretraining(**{**TINY, "learning_rate": 1e30, "steps": 10}), tmp_path / "small")
    assert not (tmp_path / "small").exists()
