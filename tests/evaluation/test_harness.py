"""The bridge to lm-evaluation-harness, on tasks of a local folder: its answers against those counted here, slowly."""

import json
import sys

import pytest
import torch

from qpeft import cli
from qpeft.errors import InputError
from qpeft.evaluation.harness import load_tasks, run_harness
from qpeft.evaluation.statistics import wilson

pytest.importorskip("lm_eval")

COLOURS = ["red", "green", "blue"]
N = 12


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A multiple-choice task, a written one, and both as a group."""
    folder = tmp_path_factory.mktemp("tasks")
    documents = [{"question": f"Thing {i} is", "choices": COLOURS, "answer": i % 3} for i in range(N)]
    sums = [{"question": f"{i}+{i}=", "answer": str(2 * i)} for i in range(N)]
    for name, rows in (("colours", documents), ("sums", sums)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {"dataset_path": "json", "test_split": "test", "num_fewshot": 0, "doc_to_text": "{{question}}"}
    colours = {
        **common, "task": "tiny_colours", "output_type": "multiple_choice", "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}", "dataset_kwargs": {"data_files": {"test": str(folder / "colours.jsonl")}},
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }  # fmt: skip
    written = {
        **common, "task": "tiny_sums", "output_type": "generate_until", "doc_to_target": "{{answer}}",
        "dataset_kwargs": {"data_files": {"test": str(folder / "sums.jsonl")}},
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 3, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 2.0},
    }  # fmt: skip
    group = {
        "group": "tiny_group", "task": ["tiny_colours"], "metadata": {"version": 3.0},
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    }  # fmt: skip
    for name, task in (("colours", colours), ("sums", written), ("group", group)):
        (folder / f"{name}.yaml").write_text(json.dumps(task))  # JSON is YAML
    return folder


def right_colours(model, tokenizer, limit=N):
    """How often the likeliest of the three continuations is the right one."""
    right = 0
    for i in range(limit):
        likelihoods = []
        for colour in COLOURS:
            prompt, whole = (tokenizer(text)["input_ids"] for text in (f"Thing {i} is", f"Thing {i} is {colour}"))
            with torch.no_grad():
                logits = model(torch.tensor([whole])).logits[0].log_softmax(-1)  # (tokens, vocabulary)
            likelihoods.append(sum(float(logits[at - 1, whole[at]]) for at in range(len(prompt), len(whole))))
        right += max(range(3), key=likelihoods.__getitem__) == i % 3
    return right


def test_choices_are_counted_as_here(model, tokenizer, tasks):
    (result,) = run_harness(model, tokenizer, load_tasks(["tiny_colours"], tasks), batch_size=5)
    share = wilson(right_colours(model, tokenizer), N)
    metric = result.metrics["acc"]
    assert (metric.value, metric.low, metric.high) == pytest.approx((share.value, share.low, share.high))
    assert metric.is_share
    assert metric.stderr == pytest.approx((share.value * (1 - share.value) / (N - 1)) ** 0.5)
    assert (result.n, result.n_shot, result.version) == (N, 0, 1.0)
    assert len(result.records) == N


def test_written_answers_are_the_models(model, tokenizer, tasks):
    (result,) = run_harness(model, tokenizer, load_tasks(["tiny_sums"], tasks), limit=4)
    assert result.n == 4
    for i, record in enumerate(result.records):
        ids = tokenizer(f"{i}+{i}=", return_tensors="pt")
        with torch.no_grad():
            written = model.generate(**ids, max_new_tokens=3, do_sample=False)[0, ids["input_ids"].shape[1] :]
        text = tokenizer.decode(written, skip_special_tokens=True)
        assert record["resps"][0][0] == text.split("\n")[0]
    assert result.metrics["exact_match"].low == 0.0


def test_groups_patterns_and_repeats(model, tokenizer, tasks):
    found = run_harness(model, tokenizer, load_tasks(["tiny_group"], tasks), limit=3)
    assert [result.task for result in found] == ["tiny_group", "tiny_colours"]
    assert found[0].metrics["acc"].value == found[1].metrics["acc"].value
    assert list(load_tasks(["tiny_c*", "tiny_sums", "tiny_colours"], tasks)["tasks"]) == ["tiny_colours", "tiny_sums"]


def test_model_and_tokenizer_are_left_as_they_were(model, tokenizer, tasks):
    model.train().to(torch.bfloat16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    side = tokenizer.padding_side
    run_harness(model, tokenizer, load_tasks(["tiny_sums"], tasks), limit=2, max_new_tokens=1)
    assert model.training
    assert tokenizer.padding_side == side
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_chat_template_is_used_where_asked(model, tokenizer, tasks):
    loaded = load_tasks(["tiny_sums"], tasks)
    plain, templated = (
        run_harness(model, tokenizer, loaded, limit=1, max_new_tokens=1, **settings)[0].records[0]["arguments"]
        for settings in ({}, {"chat_template": True, "system": "Add."})
    )
    assert plain[0][0] == "0+0="
    assert templated[0][0].startswith("<|im_start|>system\nAdd.<|im_end|>\n<|im_start|>user\n0+0=")
    tokenizer.chat_template, kept = None, tokenizer.chat_template
    try:
        with pytest.raises(InputError, match="--chat-template"):
            run_harness(model, tokenizer, loaded, chat_template=True)
    finally:
        tokenizer.chat_template = kept


def test_what_the_harness_does_not_have(tasks, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no folder"):
        load_tasks(["tiny_sums"], tmp_path / "none")
    (tmp_path / "broken.yaml").write_text((tasks / "sums.yaml").read_text().replace("sums.jsonl", "nothing.jsonl"))
    with pytest.raises(InputError, match="cannot prepare tiny_sums"):
        load_tasks(["tiny_sums"], tmp_path)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", _no_defaults(sys.modules["lm_eval.tasks"].TaskManager))
    with pytest.raises(InputError, match="has no task 'nothing_like_it'"):
        load_tasks(["tiny_sums", "nothing_like_it"], tasks)


def _no_defaults(manager):
    """Without reading the harness's thousands of files, which takes seconds."""
    return lambda include_path, include_defaults: manager(include_path=include_path, include_defaults=False)


def command(capsys, *arguments):
    capsys.readouterr()
    code = cli.run(["eval", *map(str, arguments)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def test_the_command(capsys, tasks, llama_base, tmp_path):
    asked = ["--harness", "tiny_colours,tiny_sums", "--harness-folder", tasks, "--limit", 5]
    code, out, err = command(capsys, llama_base, *asked, "--json", "--output", tmp_path / "all.json")
    assert code == 0, err
    said = json.loads(out)
    assert list(said["tasks"]) == ["tiny_colours", "tiny_sums"]
    metric = said["tasks"]["tiny_colours"]["metrics"]["acc"]
    assert metric["low"] <= metric["value"] <= metric["high"]
    assert said["tasks"]["tiny_sums"]["version"] == 2.0
    stored = json.loads((tmp_path / "all.json").read_text())
    assert {key: value for key, value in stored.items() if key != "records"} == said
    assert len(stored["records"]["tiny_sums"]) == 5
    code, out, _ = command(capsys, llama_base, *asked, "--quiet")
    assert code == 0
    assert "tiny_sums" in out
    assert "95 % interval" in out


def test_the_command_on_a_chip(capsys, tasks, llama_base, tmp_path):
    """Circuits of an adapter run on the virtual chip while the harness asks."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from qpeft import QTHAConfig

    config = QTHAConfig(r=2, bond_dim=2, inner_features=8, target_modules=["q_proj"], layers_to_transform=[0])
    get_peft_model(AutoModelForCausalLM.from_pretrained(llama_base), config).save_pretrained(tmp_path / "adapter")
    asked = ["--harness", "tiny_sums", "--harness-folder", tasks, "--limit", 1, "--max-new-tokens", 1, "--json"]
    chip = ["--executor", "virtual-wukong", "--shots", 100, "--tokens", "last"]
    code, out, err = command(capsys, tmp_path / "adapter", *asked, *chip)
    assert code == 0, err
    said = json.loads(out)
    assert said["execution"]["circuits"] > 0
    assert said["tasks"]["tiny_sums"]["n"] == 1


def test_what_the_command_refuses(capsys, tasks, llama_base, monkeypatch):
    for arguments, words in [
        (["--harness", "a", "--task", "gsm8k"], "--task does not go with --harness"),
        (["--fewshot", 2, "--task", "gsm8k"], "--fewshot needs --harness"),
        (["--harness", ", "], "--harness needs tasks"),
        (["--harness", "a", "--harness-folder", tasks / "none"], "no folder"),
        (["--harness", "tiny_sums", "--harness-folder", tasks, "training.seed=1"], "overrides a recipe"),
        (["--harness", "tiny_sums", "--harness-folder", tasks, "--shots", 5], "--shots does nothing"),
    ]:
        code, _, err = command(capsys, llama_base, *arguments)
        assert code == 2, err
        assert words in err
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    code, _, err = command(capsys, llama_base, "--harness", "tiny_sums", "--harness-folder", tasks)
    assert code == 2
    assert 'pip install "qpeft[harness]"' in err
