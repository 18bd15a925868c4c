"""Plans of comparisons: what they may say, and how what they may not say is refused."""

import copy

import pytest
import yaml

from qpeft.compare.plan import changes, load_plan, make_plan, plan_yaml
from qpeft.errors import InputError

VALUES = {
    "output": "runs/compare/x",
    "bases": {"smollm2": {"name": "smollm2-135m-instruct", "dtype": "bfloat16"}, "small": {"pretrain": {"width": 32}}},
    "tasks": {"sums": {"data": {"train": "arithmetic", "max_steps": 1}}},
    "adapter": {"method": "qtha", "r": 4},
    "arms": ["adapter", "lora"],
    "learning_rates": [1e-3, 2e-3],
}


def changed(**values):
    return {**copy.deepcopy(VALUES), **values}


def test_a_plan_is_read_and_written_without_loss(tmp_path):
    plan = make_plan(VALUES)
    assert plan.bases["small"].pretrain["width"] == 32
    assert plan.bases["smollm2"].model.dtype == "bfloat16"
    assert plan.tasks["sums"].decides == "strict_accuracy"
    path = tmp_path / "plan.yaml"
    path.write_text(plan_yaml(plan))
    assert load_plan(path) == plan
    assert load_plan(tmp_path) == plan  # a comparison's folder stands for its plan
    assert set(VALUES["bases"]) == set(yaml.safe_load(path.read_text())["bases"])


def test_overrides_change_the_plan():
    plan = make_plan(VALUES, ["seeds.final=[7, 8]", "tasks.sums.evaluation.limit=5", "learning_rates=[3e-3]"])
    assert plan.seeds.final == [7, 8]
    assert plan.tasks["sums"].evaluation.limit == 5
    assert plan.learning_rates == [3e-3]


def test_places_choose_among_bases_and_tasks():
    assert make_plan(VALUES).pairs() == [("smollm2", "sums"), ("small", "sums")]
    assert make_plan(changed(places=[["small", "sums"]])).pairs() == [("small", "sums")]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"learning_rates": []}, "learning_rates"),
        ({"learning_rates": [0.1, -1]}, "greater than 0"),
        ({"learning_rates": [0.1, 0.1]}, "twice"),
        ({"learning_rate": [0.1]}, "did you mean learning_rates"),
        ({"seeds": {"sweep": [1], "final": [1, 2]}}, "seed 1 stands in seeds.sweep and in seeds.final"),
        ({"seeds": {"sweep": [], "final": [1]}}, "seeds.sweep"),
        ({"training": {"learning_rate": 1e-3}}, "what the comparison varies"),
        ({"training": {"max_stepz": 3}}, "max_stepz"),
        ({"adapter": {"method": "qthaa"}}, "did you mean"),
        ({"adapter": {"method": "qtha", "r": 99}}, "rank must be between"),
        ({"bases": {}}, "bases"),
        ({"bases": {"a/b": {"name": "x"}}}, "file names"),
        ({"bases": {"small": {"pretrain": {"witdh": 3}}}}, "did you mean pretrain.width"),
        ({"bases": {"small": "smollm2"}}, "mapping"),
        ({"tasks": {"sums": {"evaluation": {"task": None}}}}, "has to measure something"),
        ({"tasks": {"sums": {"evaluation": {"task": "arithmetik"}}}}, "arithmetik"),
        ({"places": [["small", "sum"]]}, "not a pair"),
        ({"extend_rates": 2, "learning_rates": [1e-3]}, "two learning_rates"),
        ({"margin": 0}, "margin"),
    ],
)
def test_what_a_plan_may_not_say_is_refused_in_one_sentence(values, words):
    with pytest.raises(InputError) as refused:
        make_plan(changed(**values))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_file_and_a_list_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.yaml"):
        load_plan(tmp_path / "nothing.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(InputError, match="mapping"):
        load_plan(tmp_path / "list.yaml")


def test_changes_are_named():
    before = make_plan(VALUES).model_dump()
    now = make_plan(VALUES, ["margin=0.03", "adapter.r=3"]).model_dump()
    assert changes(before, now) == ["adapter.r: was 4, now 3", "margin: was None, now 0.03"]
