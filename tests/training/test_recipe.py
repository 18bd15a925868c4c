"""Recipes: strict keys, overrides, limits, and what is said when something is wrong."""

import pytest
import yaml

from qpeft.errors import InputError
from qpeft.training import load_recipe, make_recipe
from qpeft.training.recipe import packaged_recipes


def written(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(values, *overrides):
    with pytest.raises(InputError) as caught:
        make_recipe({"output": "runs/x", **values}, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("values", "nearest"),
    [
        ({"traning": {}}, "unknown key traning; did you mean training?"),
        ({"model": {"nam": "x"}}, "unknown key model.nam; did you mean model.name?"),
        (
            {"adapter": {"bond_dims": 3}},
            "adapter.bond_dims for method qtha; did you mean adapter.bond_dim?",
        ),
        ({"adapter": {"method": "lora", "lora_alfa": 8}}, "did you mean adapter.lora_alpha?"),
        ({"adapter": {"method": "qhta"}}, "unknown adapter method 'qhta'; did you mean qtha?"),
        ({"data": {"trian": "x"}}, "did you mean data.train?"),
        ({"training": {"learning_rat": 1}}, "did you mean training.learning_rate?"),
        ({"training": {"lr_scheduler_type": "cosin"}}, "did you mean cosine?"),
        ({"training": {"trl": {"neftune_noise_alfa": 1}}}, "did you mean neftune_noise_alpha?"),
        ({"evaluation": {"taks": "gsm8k"}}, "did you mean evaluation.task?"),
    ],
)
def test_an_unknown_key_names_the_nearest_right_one(values, nearest):
    assert nearest in refusal(values)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"training": {"learning_rate": -1}}, ("training.learning_rate", "-1", "greater than 0")),
        ({"training": {"learning_rate": "fast"}}, ("training.learning_rate", "'fast'", "number")),
        ({"training": {"learning_rate": None}}, ("training.learning_rate", "null")),
        ({"training": {"learning_rate": float("inf")}}, ("training.learning_rate", "finite")),
        ({"training": {"max_steps": 2.5}}, ("training.max_steps", "2.5", "integer")),
        ({"training": {"eval_steps": 0}}, ("training.eval_steps", "0", "1")),
        ({"training": {"trl": 3}}, ("training.trl", "3", "dictionary")),
        ({"training": {"trl": {"output_dir": "x"}}}, ("training.trl.output_dir", "own keys")),
        ({"training": {"trl": {"learning_rate": 1}}}, ("training.trl.learning_rate", "own keys")),
        ({"model": {"dtype": "int8"}}, ("model.dtype", "'int8'", "bfloat16")),
        ({"model": 3}, ("model", "3", "section")),
        ({"model": {1: 2}}, ("model.1", "strings")),
        ({"data": {"max_length": [1]}}, ("data.max_length", "[1]", "integer")),
        ({"data": {"validation_fraction": 1.0}}, ("data.validation_fraction", "1.0", "less than 1")),
        ({"adapter": {"r": 0}}, ("rank", "between 1 and 20", "got 0")),
        ({"adapter": {"r": 64}}, ("rank", "between 1 and 20", "got 64", 'arch="mpo"')),
        ({"adapter": {"alpha": "x"}}, ("alpha", "'x'", "number")),
        ({"adapter": {"factors": 3}}, ("factors", "3")),
        ({"adapter": {"peft_type": "LORA"}}, ("unknown key adapter.peft_type",)),
        ({"adapter": {"method": None}}, ("adapter.method", "null", "string")),
        ({"output": None}, ("output is missing",)),
        ({"output": 2024}, ("output", "2024", "string")),
    ],
)
def test_a_wrong_value_is_named_with_its_limit(values, parts):
    message = refusal(values)
    assert all(part in message for part in parts), message


def test_overrides_reach_every_depth_and_keep_their_type():
    recipe = make_recipe(
        {"output": "runs/x", "training": None, "adapter": {"method": "lora"}},
        ["training.learning_rate=2e-4", "training.eval_steps=null", "adapter.target_modules=[q_proj, v_proj]",
         "training.trl.optim=sgd", "data.system=", "training.tensorboard=false", "output=a=b"],
    )  # fmt: skip
    assert recipe.training.learning_rate == 2e-4
    assert recipe.training.eval_steps is None
    assert recipe.adapter.fields == {"target_modules": ["q_proj", "v_proj"]}
    assert recipe.training.trl == {"optim": "sgd"}
    assert recipe.data.system is None
    assert recipe.training.tensorboard is False
    assert recipe.output == "a=b"


def test_overrides_leave_the_given_values_alone():
    values = {"output": "runs/x", "training": {"max_steps": 3}}
    make_recipe(values, ["training.max_steps=9"])
    assert values == {"output": "runs/x", "training": {"max_steps": 3}}


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("max_steps", ("'max_steps'", "section.key=value")),
        ("=3", ("section.key=value",)),
        ("training.learning_rate=[", ("not valid YAML",)),
        ("training.learning_rate.x=3", ("training.learning_rate",)),
        ("training=3", ("training", "section")),
        ("traning.max_steps=3", ("did you mean training?",)),
        ("training.trl.x.y=1", ("training.trl.x",)),
    ],
)
def test_a_wrong_override_is_refused(override, parts):
    message = refusal({}, override)
    assert all(part in message for part in parts), message


def test_a_value_in_place_of_a_section_is_named():
    assert "model is a value" in refusal({"model": 3}, "model.name=x")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("output: x\nmodel: [", "line 2"),
        ("output: x\nmodel:\n\tname: y", "line 3"),
        ("output: x\nmodel: {}\noutput: y", "line 3: not valid YAML (the key output stands there twice)"),
        ("output: x\nmodel: *nobody", "line 2"),
    ],
)
def test_bad_yaml_is_reported_with_its_line(tmp_path, text, line):
    path = written(tmp_path, text)
    with pytest.raises(InputError) as caught:
        load_recipe(path)
    assert f"{path}, {line}" in str(caught.value)


@pytest.mark.parametrize("text", ["", "- 1\n- 2", "just words"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    with pytest.raises(InputError, match="mapping of sections"):
        load_recipe(written(tmp_path, text))


def test_yaml_that_contains_itself_is_refused(tmp_path):
    with pytest.raises(InputError, match="contains itself"):
        load_recipe(written(tmp_path, "&a {output: x, model: *a}"))


def test_a_missing_file_suggests_what_is_there(tmp_path):
    written(tmp_path, "output: x")
    with pytest.raises(InputError, match=r"no recipe .*did you mean .*/recipe\.yaml\?"):
        load_recipe(tmp_path / "recipee.yaml")
    with pytest.raises(InputError, match=r"did you mean demo-qtha\?"):
        load_recipe("demo-qhta")
    with pytest.raises(InputError, match="no recipe"):
        load_recipe(tmp_path / "no" / "such" / "recipe.yaml")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", None])
def test_an_unreadable_file_is_refused(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        load_recipe(path)


@pytest.mark.parametrize("name", sorted(packaged_recipes()))
def test_packaged_recipes_are_valid_and_survive_being_written(name, tmp_path):
    recipe = load_recipe(name)
    assert load_recipe(written(tmp_path, recipe.to_yaml())) == recipe


def test_the_packaged_demo_recipes_differ_in_nothing_but_the_adapter():
    qtha, lora = (yaml.safe_load(load_recipe(name).to_yaml()) for name in ("demo-qtha", "demo-lora"))
    for section in ("model", "data", "evaluation"):
        assert qtha[section] == lora[section]
    assert {key for key in qtha["training"] if qtha["training"][key] != lora["training"][key]} <= {"learning_rate"}
    assert qtha["adapter"]["r"] == lora["adapter"]["r"]


def test_small_numbers_survive_being_written(tmp_path):
    recipe = make_recipe(
        {"output": "runs/x", "training": {"learning_rate": 1e-7, "trl": {"adam_epsilon": 1e-12}}},
        ["data.system='tokens: # 1'"],
    )
    again = load_recipe(written(tmp_path, recipe.to_yaml()))
    assert again == recipe
    assert again.training.learning_rate == 1e-7
