"""Two adapters of different methods on the tiny base, and a server of both that listens on this machine."""

import http.client
import json
import threading
import time
from contextlib import contextmanager

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from qpeft import QTHAConfig
from qpeft.serving import Engine, Server, build_app, open_models


def _save_adapter(base, folder, config, seed):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape), alpha=0.5)
            assert "default" in name
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapters(tmp_path_factory, llama_base):
    """Folders of a circuit adapter and of a LoRA; both change what the model says."""
    folder = tmp_path_factory.mktemp("adapters")
    targets = ["q_proj", "v_proj"]
    qtha = QTHAConfig(r=2, bond_dim=2, inner_features=8, target_modules=targets, task_type="CAUSAL_LM")
    lora = LoraConfig(r=2, target_modules=[*targets, "down_proj"], task_type="CAUSAL_LM")
    return [
        _save_adapter(llama_base, folder / "circuits", qtha, 1),
        _save_adapter(llama_base, folder / "lora", lora, 2),
    ]


@pytest.fixture(scope="session")
def served(adapters):
    return open_models([str(folder) for folder in adapters], device="cpu")


class Client:
    """Asks a server, one connection a question."""

    def __init__(self, url):
        self.host, self.port = url.removeprefix("http://").split(":")

    def connect(self):
        return http.client.HTTPConnection(self.host, int(self.port), timeout=30)

    def send(self, method, path, body=None):
        connection = self.connect()
        raw = body if isinstance(body, bytes | None) else json.dumps(body)
        connection.request(method, path, raw, {"Content-Type": "application/json"})
        return connection, connection.getresponse()

    def __call__(self, method, path, body=None):
        connection, answer = self.send(method, path, body)
        raw = answer.read()
        connection.close()
        return answer.status, json.loads(raw) if "json" in answer.headers.get("Content-Type", "") else raw.decode()

    def chat(self, model, content="Hello", **settings):
        body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 8, "temperature": 0}
        return self("POST", "/v1/chat/completions", {**body, **settings})

    def stream(self, path, body):
        """The events of a stream, and whether it ended as it should."""
        _, text = self("POST", path, {**body, "stream": True})
        events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        ended = events[-1] == "[DONE]"
        return [json.loads(event) for event in events[: len(events) - ended]], ended


@contextmanager
def running(models, queue_size=64, drain_seconds=10, batch_size=8, **settings):
    engine = Engine(queue_size, batch_size)
    server = Server(build_app(models, engine, **settings), engine, port=0, drain_seconds=drain_seconds)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield Client(server.url), engine, server
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture
def serve():
    return running


@pytest.fixture(scope="session")
def client(served):
    with running(served, max_new_tokens=6) as (client, _, _):
        yield client


@pytest.fixture
def wait_until():
    """Waits for a condition, which has to come."""

    def wait(condition):
        ends = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < ends
            time.sleep(0.01)

    return wait
