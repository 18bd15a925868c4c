"""`qpeft qpu layout`: table, map, picture, and errors in one sentence."""

import json

import pytest

from qpeft.cli import run


def test_the_command_shows_table_map_and_gain(capsys, tmp_path):
    picture = tmp_path / "map.png"
    assert run(["qpu", "layout", "--ansatz", "chain", "--buffer", "1", "--output", str(picture)]) == 0
    shown = capsys.readouterr().out
    assert "wukong-72: chain, 1 layer" in shown
    assert "expected fidelity" in shown
    assert "circuits run at once" in shown
    assert "══" in shown
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_json_holds_the_same(capsys):
    assert run(["qpu", "layout", "--ansatz", "chain", "--qubits", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["chip"] == "wukong-72"
    assert len(report["blocks"]) >= 25
    assert report["circuits_for_1000_samples"] == -(-1000 // len(report["blocks"]))
    qubits = [qubit for block in report["blocks"] for qubit in block["qubits"]]
    assert len(qubits) == len(set(qubits))
    assert all(0 < block["expected_fidelity"] < 1 and block["cz"] >= 1 for block in report["blocks"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ansatz", "spiral"], "there is no ansatz 'spiral'"),
        (["--chip", "wukong-27"], "did you mean 'wukong-72'"),
        (["--solver", "magic"], "there is no solver 'magic'"),
        (["--min-fidelity", "0.999"], "no place of wukong-72 reaches the fidelity 0.999"),
        (["--output", "map.txt"], "names no picture"),
        (["--output", "no/such/folder/map.png"], "there is no folder"),
    ],
)
def test_bad_input_is_one_sentence(words, message, capsys):
    assert run(["qpu", "layout", *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
