"""`qpeft serve`: says where it listens and what it serves, ends with a signal; what it refuses."""

import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest


@pytest.fixture
def visited(qpeft):
    """Run the command here, in the main thread; another thread asks once and ends it with a signal."""

    def serve(target, name="SIGTERM", *options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        said, ended = [], threading.Event()

        def visit():
            body = json.dumps({"model": "mine", "prompt": "1+1", "max_tokens": 2, "temperature": 0}).encode()
            ends = time.monotonic() + 60
            while time.monotonic() < ends and not said and not ended.is_set():
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/completions", body, timeout=30) as answer:
                        said.append(json.loads(answer.read()))
                except urllib.error.HTTPError as refused:
                    said.append(json.loads(refused.read()))
                except urllib.error.URLError:
                    time.sleep(0.05)
            if not ended.is_set():
                os.kill(os.getpid(), getattr(signal, name))

        client = threading.Thread(target=visit)
        client.start()
        ran = qpeft("serve", f"mine={target}", "--port", port, *options)
        ended.set()
        client.join()
        assert ran.out.strip() == f"http://127.0.0.1:{port}", ran.err
        return ran, said[0]

    return serve


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 0)])
def test_serving_until_a_signal(visited, finished, name, code):
    ran, said = visited(finished, name)
    assert ran.code == code
    assert "models: mine, tiny-llama" in ran.err
    assert said["usage"]["completion_tokens"] <= 2
    assert "mine: 3 + " in ran.err


QUANTUM = {"method": "qtha", "r": 2, "arch": "quantum", "target_modules": ["q_proj"]}
CHIP = ("--executor", "virtual-wukong", "--shots", "200", "--tokens", "last")


def test_serving_circuits_of_an_executor(qpeft, visited, write_recipe, tmp_path):
    """One circuit a layer for each of two calls, in the run's ledger; after its budget, a clear refusal."""
    path = write_recipe(adapter=QUANTUM, training__max_steps=1, execution={"executor": "exact", "max_jobs": 8})
    assert qpeft("train", path, "--quiet").code == 0
    ran, said = visited(tmp_path / "run", "SIGTERM", *CHIP)
    assert ran.code == 0
    assert "error" not in said, said
    assert said["usage"]["completion_tokens"] in (1, 2)
    assert "executed on virtual:wukong-72" in ran.err
    assert "virtual:wukong-72" in qpeft("qpu", "show", tmp_path / "run").out
    ran, again = visited(tmp_path / "run", "SIGTERM", *CHIP)
    assert again["choices"] == said["choices"]  # from the ledger: nothing is run twice
    ran, said = visited(tmp_path / "run", "SIGTERM", *CHIP[:2], "--shots", "300")
    assert ran.code == 0
    assert said["error"]["type"] == "server_error"
    assert "budget" in said["error"]["message"]


def test_what_does_not_go_with_an_executor(qpeft, finished):
    for arguments, words in [
        ([finished, f"other={finished}", *CHIP], "of one run"),
        ([finished, *CHIP, "--batch", "4"], "--batch 4 does not go with --executor virtual-wukong"),
        ([finished, *CHIP], "the model has no circuits"),
        ([finished, "--executor", "wukong"], "unknown executor 'wukong'"),
        ([finished, "--shots", "200"], "--shots does nothing without --executor"),
        ([finished, "--batch", "0"], "--batch"),
    ]:
        said = qpeft("serve", *arguments)
        assert said.code == 2, said.err
        assert words in said.err


def test_what_serve_refuses(qpeft, finished, bert_base, tmp_path):
    for arguments, words in [
        ([tmp_path / "nothing"], "nothing"),
        ([finished, finished], "the same name"),
        ([finished, "--port", "70000"], "--port"),
        ([finished, "--host", "256.1.1.1"], "cannot listen"),
        ([finished, "--dtype", "int3"], "int3"),
        ([finished, "--queue", "0"], "--queue"),
        ([finished, "--base", bert_base], "bert"),
        ([], "targets"),
    ]:
        said = qpeft("serve", *arguments)
        assert said.code == 2, said.err
        assert words in said.err


def test_what_is_missing_is_named(qpeft, finished, monkeypatch):
    for module in [name for name in sys.modules if name.startswith("qpeft.serving")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    said = qpeft("serve", finished)
    assert said.code == 2
    assert 'pip install "qpeft[serve]"' in said.err
