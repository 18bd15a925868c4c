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


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 0)])
def test_serving_until_a_signal(qpeft, finished, name, code):
    """The command runs here in the main thread; another thread is the client, and ends it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said, ended = [], threading.Event()

    def visit():
        body = json.dumps({"model": "mine", "prompt": "1+1", "max_tokens": 2}).encode()
        ends = time.monotonic() + 60
        while time.monotonic() < ends and not said and not ended.is_set():
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/completions", body, timeout=30) as answer:
                    said.append(json.loads(answer.read()))
            except urllib.error.URLError:
                time.sleep(0.05)
        if not ended.is_set():
            os.kill(os.getpid(), getattr(signal, name))

    client = threading.Thread(target=visit)
    client.start()
    ran = qpeft("serve", f"mine={finished}", "--port", port)
    ended.set()
    client.join()
    assert ran.code == code
    assert ran.out.strip() == f"http://127.0.0.1:{port}"
    assert "models: mine, tiny-llama" in ran.err
    assert said[0]["usage"]["completion_tokens"] <= 2
    assert "mine: 3 + " in ran.err


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
