"""What clients see: answers as the models alone give them, streams that say the same, refusals in their shape."""

import json
import threading

import pytest
import torch

from qpeft.errors import InputError
from qpeft.serving import Server, build_app, open_models
from qpeft.serving.models import share_weights
from qpeft.training.target import open_target

CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"


def alone(target, content, n_tokens):
    """The answer of a model that was opened by itself."""
    opened = open_target(str(target), device="cpu")
    text = opened.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    ids = opened.tokenizer(text, return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        written = opened.model.generate(**ids, max_new_tokens=n_tokens, do_sample=False)
    return opened.tokenizer.decode(written[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def test_each_model_answers_as_if_it_were_alone(client, adapters, llama_base):
    said = {}
    for target in [*adapters, llama_base]:
        status, answer = client.chat(target.name, "One and two?", max_tokens=12)
        assert status == 200
        choice = answer["choices"][0]
        said[target.name] = choice["message"]["content"]
        assert said[target.name] == alone(target, "One and two?", 12)
        assert answer["usage"]["completion_tokens"] == 12 or choice["finish_reason"] == "stop"
        assert answer["usage"]["total_tokens"] == sum(
            answer["usage"][key] for key in ("prompt_tokens", "completion_tokens")
        )
    assert len(set(said.values())) == 3


def test_adapters_share_the_weights_of_their_base(served):
    circuits, lora, base = served.values()
    own = {id(parameter) for parameter in base.model.parameters()}
    for adapter in (circuits, lora):
        shared = [parameter for parameter in adapter.model.parameters() if id(parameter) in own]
        assert len(shared) == len(own)
    assert not [name for name, _ in base.model.named_modules() if "lora" in name or "qtha" in name]


def test_shared_weights_keep_ties():
    first = torch.nn.Linear(3, 3)
    tied = torch.nn.Sequential(first, torch.nn.Linear(3, 3))
    tied[1].weight = first.weight
    second = share_weights(tied)
    assert second is not tied
    assert second[0] is not first
    assert second[0].weight is second[1].weight is first.weight


@pytest.mark.parametrize("model", ["circuits", "lora"])
def test_a_stream_says_the_same(client, model):
    _, whole = client.chat(model, max_tokens=10)
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 10, "temperature": 0}
    events, ended = client.stream(CHAT, {**body, "stream_options": {"include_usage": True}})
    assert ended
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    pieces = [event["choices"][0]["delta"].get("content", "") for event in events[:-1]]
    assert "".join(pieces) == whole["choices"][0]["message"]["content"]
    assert events[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == whole["usage"]
    assert {event["object"] for event in events} == {"chat.completion.chunk"}


def test_completions_of_text_and_of_tokens(client, served):
    body = {"model": "lora", "temperature": 0}
    _, of_text = client("POST", COMPLETE, {**body, "prompt": "abc"})
    assert of_text["object"] == "text_completion"
    assert of_text["usage"]["completion_tokens"] <= 16
    ids = served["lora"].tokenizer("abc")["input_ids"]
    for prompt in (ids, ["abc"]):
        assert client("POST", COMPLETE, {**body, "prompt": prompt})[1]["choices"] == of_text["choices"]
    events, ended = client.stream(COMPLETE, {**body, "prompt": "abc"})
    assert ended
    assert "".join(event["choices"][0]["text"] for event in events) == of_text["choices"][0]["text"]


def test_a_seed_draws_the_same_answer_again(client):
    first, second, other, free = (
        client.chat("circuits", temperature=1, max_tokens=30, **seed)[1]["choices"][0]["message"]["content"]
        for seed in ({"seed": 3}, {"seed": 3}, {"seed": 4}, {})
    )
    assert first == second
    assert len({first, other, free}) == 3


def test_the_answer_ends_before_a_stop_string(client):
    text = client.chat("lora", max_tokens=20)[1]["choices"][0]["message"]["content"]
    stop = text[4:6]
    answer = client.chat("lora", max_tokens=20, stop=["never", stop])[1]["choices"][0]
    assert answer == {**answer, "finish_reason": "stop"}
    assert answer["message"]["content"] == text[: text.index(stop)]


def test_a_chat_without_a_limit_gets_the_servers(client):
    body = {"model": "lora", "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]}
    _, answer = client("POST", CHAT, {**body, "temperature": 0, "user": "someone"})
    assert answer["usage"]["completion_tokens"] <= 6
    assert answer["usage"]["prompt_tokens"] == client.chat("lora")[1]["usage"]["prompt_tokens"]


def test_models_are_listed(client, served, llama_base):
    status, listed = client("GET", "/v1/models")
    assert status == 200
    assert [entry["id"] for entry in listed["data"]] == ["circuits", "lora", llama_base.name]
    assert [entry["parent"] for entry in listed["data"]] == [llama_base.name, llama_base.name, None]
    assert client("GET", "/v1/models/lora") == (200, listed["data"][1])
    assert client("GET", "/v1/models/none")[0] == 404
    status, page = client("GET", "/")
    assert status == 200
    assert "QTHA on tiny-llama" in page


HELLO = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        (CHAT, b"{", 400, "not JSON"),
        (CHAT, b"[" * 100_000, 400, "not JSON"),
        (CHAT, b"\xff", 400, "not JSON"),
        (CHAT, b"[]", 400, "JSON object"),
        (CHAT, b" " * (5 << 20), 413, "at most"),
        (CHAT, {"messages": HELLO}, 400, "model: field required"),
        (CHAT, {"model": "lora"}, 400, "messages: field required"),
        (CHAT, {"model": "none", "messages": HELLO}, 404, "no model 'none' here: choose one of circuits, lora"),
        (CHAT, {"model": "lora", "messages": []}, 400, "messages: "),
        (CHAT, {"model": "lora", "messages": [{"role": "robot", "content": "x"}]}, 400, "messages.0.role: "),
        (CHAT, {"model": "lora", "messages": [{"role": "user"}]}, 400, "messages.0.content: "),
        (CHAT, {"model": "lora", "messages": [{"role": "user", "content": "\ud800"}]}, 400, "not JSON"),
        (CHAT, {"model": "lora", "messages": HELLO, "max_tokens": 0}, 400, "max_tokens: "),
        (CHAT, {"model": "lora", "messages": HELLO, "max_tokens": "9"}, 400, "max_tokens: "),
        (CHAT, {"model": "lora", "messages": HELLO, "max_tokens": 510}, 400, "max_tokens can be"),
        (CHAT, {"model": "lora", "messages": HELLO, "temperature": -1}, 400, "temperature: "),
        (CHAT, b'{"model": "lora", "messages": [], "temperature": NaN}', 400, "finite"),
        (CHAT, {"model": "lora", "messages": HELLO, "n": 2}, 400, "n: "),
        (CHAT, {"model": "lora", "messages": HELLO, "tools": [{"type": "function"}]}, 400, "tools: "),
        (CHAT, {"model": "lora", "messages": HELLO, "logprobs": True}, 400, "logprobs: "),
        (CHAT, {"model": "lora", "messages": HELLO, "stop": ["a"] * 5}, 400, "stop: "),
        (CHAT, {"model": "lora", "messages": HELLO, "top_k": 5}, 400, "top_k: is not known here"),
        (CHAT, {"model": "lora", "messages": [{"role": "user", "content": "a" * 600}]}, 400, "512 tokens"),
        (COMPLETE, {"model": "lora", "prompt": "a" * 600}, 400, "512 tokens"),
        (COMPLETE, {"model": "lora", "prompt": ""}, 400, "empty"),
        (COMPLETE, {"model": "lora", "prompt": [1, 99_999]}, 400, "token 99999"),
        (COMPLETE, {"model": "lora", "prompt": ["a", "b"]}, 400, "prompt: "),
        (COMPLETE, {"model": "lora", "prompt": "a", "echo": True}, 400, "echo: "),
        ("/v1/embeddings", {}, 404, "not found"),
    ],
)
def test_refusals_have_openais_shape(client, path, body, status, words):
    got, answer = client("POST", path, body)
    assert got == status
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error"
    assert words in answer["error"]["message"]
    if "512" in words:
        assert answer["error"]["code"] == "context_length_exceeded"


def test_a_wrong_method_and_a_request_that_is_not_http(client):
    assert client("GET", CHAT)[0] == 405
    connection = client.connect()
    connection.connect()
    connection.sock.sendall(b"hello\r\n\r\n")
    assert b"400" in connection.sock.recv(200)
    connection.close()
    assert client("GET", "/v1/models")[0] == 200


class Gate:
    """Holds a model's generation until told to go on, token by token if wanted."""

    def __init__(self, monkeypatch, model):
        self.entered, self.go = threading.Event(), threading.Event()
        generate = model.generate

        def held(*arguments, **settings):
            self.entered.set()
            assert self.go.wait(20)
            return generate(*arguments, **settings)

        monkeypatch.setattr(model, "generate", held, raising=False)


def test_a_full_queue_says_when_to_come_again(served, serve, monkeypatch, wait_until):
    gate = Gate(monkeypatch, served["lora"].model)
    with serve(served, queue_size=1) as (client, engine, _):
        waiting = [threading.Thread(target=client.chat, args=["lora"]) for _ in range(2)]
        waiting[0].start()
        assert gate.entered.wait(20)
        waiting[1].start()
        wait_until(lambda: engine.open_jobs == 2)
        body = {"model": "lora", "messages": HELLO, "max_tokens": 2}
        connection, answer = client.send("POST", CHAT, body)
        assert answer.status == 429
        assert int(answer.headers["Retry-After"]) >= 1
        assert json.loads(answer.read())["error"]["code"] == "queue_full"
        connection.close()
        gate.go.set()
        for thread in waiting:
            thread.join()
        assert engine.answered == 2


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_generation(served, serve, stream, wait_until):
    """The answer would be 400 tokens long; both the one being written and the one that waits are forgotten."""
    with serve(served) as (client, engine, _):
        body = {"model": "circuits", "messages": HELLO, "max_tokens": 400, "stream": stream, "seed": 1}
        connections = [client.connect() for _ in range(2)]
        for connection in connections:
            connection.request("POST", CHAT, json.dumps(body))
        wait_until(lambda: engine.open_jobs == 2)
        for connection in connections:
            connection.close()
        wait_until(lambda: engine.open_jobs == 0)
        assert engine.answered == 0
        assert client.chat("circuits")[0] == 200


def test_a_model_that_fails_is_told_and_the_next_request_is_answered(served, serve, monkeypatch):
    with serve(served) as (client, _, _):
        with monkeypatch.context() as patch:
            patch.setattr(served["lora"].model, "generate", lambda **_: 1 / 0, raising=False)
            status, answer = client.chat("lora")
            assert status == 500
            assert answer["error"]["type"] == "server_error"
            assert "ZeroDivisionError" in answer["error"]["message"]
            events, ended = client.stream(CHAT, {"model": "lora", "messages": HELLO})
            assert not ended
            assert "ZeroDivisionError" in events[-1]["error"]["message"]
        assert client.chat("lora")[0] == 200


def test_ending_lets_open_requests_finish(served, serve, monkeypatch, wait_until):
    gate = Gate(monkeypatch, served["lora"].model)
    said = []
    with serve(served) as (client, engine, server):
        threads = [threading.Thread(target=lambda: said.append(client.chat("lora")[0])) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: engine.open_jobs == 3)
        server.stop()
        gate.go.set()
    for thread in threads:
        thread.join()
    assert said == [200, 200, 200]


def test_many_requests_at_once(served, serve):
    """300 clients, each with a connection of its own, at a queue of 50: answered, or asked to come again."""
    with serve(served, queue_size=50) as (client, engine, _):
        connections = [client.connect() for _ in range(300)]
        body = json.dumps({"model": "lora", "prompt": "a", "max_tokens": 1})
        for connection in connections:
            connection.request("POST", COMPLETE, body)
        statuses = []
        for connection in connections:
            answer = connection.getresponse()
            statuses.append(answer.status)
            answer.read()
            connection.close()
        assert set(statuses) <= {200, 429}
        assert statuses.count(200) == engine.answered >= 51


def test_what_cannot_be_served(adapters, llama_base, tmp_path):
    with pytest.raises(InputError, match="the same name"):
        open_models([str(adapters[0]), str(adapters[0])])
    with pytest.raises(InputError, match="is also the name of the base"):
        open_models([f"tiny-llama={adapters[0]}"])
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in adapters[1].iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "another"}))
    with pytest.raises(InputError, match="serve them apart"):
        open_models([str(adapters[0]), str(moved)])
    assert list(open_models([str(adapters[0]), f"b={moved}"], str(llama_base))) == ["circuits", "b", "tiny-llama"]


def test_a_port_in_use_is_told(served, serve):
    with serve(served) as (client, engine, _), pytest.raises(InputError, match="cannot listen"):
        Server(build_app(served, engine), engine, port=int(client.port))
    with pytest.raises(OSError, match="refused"):
        client("GET", "/")
