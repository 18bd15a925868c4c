"""`qpeft cloud serve`: says where it listens, tells of tasks, ends with a signal; what it refuses."""

import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 0)])
def test_serving_until_a_signal(qpeft, port, tmp_path, name, code):
    """The command runs here in the main thread; another thread is the visitor, and ends it."""
    pages = []

    def visit():
        ends = time.monotonic() + 20
        while time.monotonic() < ends and not pages:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    pages.append(answer.read().decode())
            except urllib.error.URLError:
                time.sleep(0.05)
        os.kill(os.getpid(), getattr(signal, name))

    visitor = threading.Thread(target=visit)
    visitor.start()
    said = qpeft("cloud", "serve", "--loopback", "--port", port, "--folder", tmp_path / "tasks", "--speed", 2)
    visitor.join()
    assert said.code == code
    assert said.out.strip() == f"http://127.0.0.1:{port}"
    assert f"QPEFT_ORIGIN_URL=http://127.0.0.1:{port}" in said.err
    assert "2 times as fast" in pages[0]
    assert (tmp_path / "tasks" / "tasks.sqlite").exists()


def test_what_serve_refuses(qpeft, tmp_path, port):
    (tmp_path / "faults.yaml").write_text("- {at: submit, fault: flood}")
    for options, words in [
        ([], "--loopback"),
        (["--loopback", "--host", "0.0.0.0"], "--allow-remote"),
        (["--loopback", "--chip", "72=nothing"], "nothing"),
        (["--loopback", "--faults", tmp_path / "faults.yaml"], "unknown fault 'flood'"),
        (["--loopback", "--faults", tmp_path / "none.yaml"], "cannot be read"),
        (["--loopback", "--speed", "-1"], "--speed"),
    ]:
        said = qpeft("cloud", "serve", *options)
        assert said.code == 2
        assert words in said.err
