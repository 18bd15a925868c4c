"""`qpeft estimate` without a chip."""

import json


def test_memory_time_and_what_fits(qpeft, write_recipe):
    path = write_recipe(model="smollm2-135m", model__dtype="bfloat16", data__max_length=64)
    said = qpeft("estimate", path, "--memory", "2GB", "--json")
    assert said.code == 0, said.err
    found = said.json
    assert found["base_parameters"] == 134_515_008
    assert found["memory"]["weights"] == 2 * 134_515_008
    parts = [size for part, size in found["memory"].items() if part != "peak"]
    assert sum(parts) == found["memory"]["peak"]
    assert found["seconds_per_epoch"] == found["steps_per_epoch"] * found["seconds_per_step"] > 0
    assert found["fits"]["batch of 64 tokens"] > found["batch"]
    assert "data.max_length" in said.err or found["length"] <= 64


def test_a_folder_needs_no_weights(qpeft, write_recipe, tmp_path, llama_base):
    folder = tmp_path / "config-alone"
    folder.mkdir()
    (folder / "config.json").write_text((llama_base / "config.json").read_text())
    assert qpeft("estimate", write_recipe(model=str(folder))).code == 0
    (folder / "config.json").write_text(json.dumps({"model_type": "nothing-known"}))
    assert qpeft("estimate", write_recipe(model=str(folder))).code == 2


def test_a_classifier_is_refused(qpeft, write_recipe):
    said = qpeft("estimate", write_recipe(model__task="sequence-classification"))
    assert said.code == 2
    assert "language models" in said.err
