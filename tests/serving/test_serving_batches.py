"""Requests written together: each gets what it would get alone, and leaves or fails without the others."""

import asyncio
import json
import subprocess
import sys
import threading
import time

import pytest
import storm_client
import torch
from storm_client import storm

from qpeft.errors import QPeftError
from qpeft.serving.drawing import DrawEachRow, Sampling
from qpeft.serving.engine import Engine, choose
from qpeft.serving.writing import Job, write_answers

resource = pytest.importorskip("resource")


class Heard:
    """A job and everything it was told."""

    def __init__(self, served, prompt, **sampling):
        self.pieces, self.end = [], None
        settings = {"max_new_tokens": 12, "temperature": 0.0, **sampling}
        ids = served.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        self.job = Job(served, ids, Sampling(**settings), self.pieces.append)

    def ended(self, job, event):
        assert job is self.job
        assert self.end is None
        self.end = event

    @property
    def said(self):
        return "".join(piece.text for piece in self.pieces) + self.end.text, self.end.reason, self.end.n_tokens


def write(*heard):
    by_job = {one.job: one for one in heard}
    write_answers([one.job for one in heard], lambda job, event: by_job[job].ended(job, event))
    return [one.said for one in heard]


@pytest.mark.parametrize("name", ["circuits", "lora", "tiny-llama"])
def test_a_batch_says_what_each_says_alone(served, name):
    text, _, _ = write(Heard(served[name], "One and two?", max_new_tokens=20))[0]
    asked = [
        ("One and two?", {"max_new_tokens": 20}),
        ("x", {"max_new_tokens": 1}),
        ("A much longer question than the others have, with many words", {"max_new_tokens": 7}),
        ("One and two?", {"max_new_tokens": 20, "stop": ("never", text[4:6])}),
        ("One and two?", {"max_new_tokens": 15, "temperature": 1.0, "seed": 3}),
        ("One and two?", {"max_new_tokens": 15, "temperature": 0.7, "top_p": 0.5, "seed": 3}),
    ]
    alone = [write(Heard(served[name], prompt, **settings))[0] for prompt, settings in asked]
    together = write(*(Heard(served[name], prompt, **settings) for prompt, settings in asked))
    assert together == alone
    assert together[1][2] == 1
    assert together[3][:2] == (text[: text.index(text[4:6])], "stop")
    assert len({said for said, _, _ in together}) == len(asked)


def test_drawing_is_the_softmax_of_scaled_logits(served):
    """The first token's frequencies over many seeds, against probabilities from the logits."""
    served_model = served["lora"]
    prompt = served_model.tokenizer("ab")["input_ids"]
    with torch.no_grad():
        logits = served_model.model(input_ids=torch.tensor([prompt])).logits[0, -1].double()
    want = torch.softmax(logits / 0.25, 0)
    drawn = torch.zeros_like(want)
    rows = [Sampling(1, temperature=0.25, seed=seed) for seed in range(4000)]
    scores = DrawEachRow(rows, torch.device("cpu"))(torch.zeros(4000, 1), logits.float().repeat(4000, 1))
    for token in scores.argmax(1).tolist():
        drawn[token] += 1 / 4000
    assert (drawn - want).abs().max() < 4 * (0.25 / 4000) ** 0.5
    nucleus = DrawEachRow([Sampling(1, 1.0, top_p=1e-6, seed=seed) for seed in range(5)], torch.device("cpu"))
    assert set(nucleus(torch.zeros(5, 1), logits.float().repeat(5, 1)).argmax(1).tolist()) == {int(logits.argmax())}


def test_a_cancelled_row_leaves_and_the_others_go_on(served):
    alone = write(Heard(served["circuits"], "abc"))[0]
    first, second, third = (Heard(served["circuits"], prompt) for prompt in ("abc", "abcdef", "a"))
    third.job.cancelled.set()
    second.job.tell = lambda piece: (second.pieces.append(piece), second.job.cancelled.set())
    said = write(first, second, third)
    assert said[0] == alone
    assert said[1][1:] == ("cancelled", second.end.n_tokens)
    assert 1 <= second.end.n_tokens < 12
    assert said[2] == ("", "cancelled", 0)


def test_a_batch_that_fails_at_once_is_written_one_by_one(served, monkeypatch):
    alone = [write(Heard(served["lora"], prompt))[0] for prompt in ("a", "bc")]
    generate, sizes = served["lora"].model.generate, []

    def only_one(**settings):
        sizes.append(len(settings["input_ids"]))
        if len(settings["input_ids"]) > 1 or settings["input_ids"].shape[1] > 50:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return generate(**settings)

    monkeypatch.setattr(served["lora"].model, "generate", only_one, raising=False)
    said = write(Heard(served["lora"], "a"), Heard(served["lora"], "z" * 60), Heard(served["lora"], "bc"))
    assert [said[0], said[2]] == alone
    assert said[1] == ("there is not enough memory for this request: send a shorter one", "error", 0)
    assert sizes == [3, 1, 1, 1]


def test_who_is_written_together(served):
    first, second = served["circuits"], served["lora"]

    def job(model, prompt, new):
        return Heard(model, [5] * prompt, max_new_tokens=new).job

    jobs = [job(first, 5, 10), job(second, 5, 10), job(first, 8, 20), job(first, 500, 4), job(first, 5, 505)]
    assert choose(jobs, 8) == [jobs[0], jobs[2]]  # the next would leave the window of 512 tokens with the others
    assert choose(jobs[1:], 8) == [jobs[1]]
    assert choose(jobs[3:], 8) == [jobs[3]]
    assert choose(jobs, 1) == [jobs[0]]
    assert choose([], 8) == []
    many = [job(first, 200, 300) for _ in range(50)]
    assert choose(many, 64) == many[:32]  # 32 rows of 500 are the most tokens of a batch


CHAT = "/v1/chat/completions"


class Counting:
    """Counts the rows of every call of generate, and holds the first call until told to go on."""

    def __init__(self, monkeypatch, model):
        self.sizes, self.entered, self.go = [], threading.Event(), threading.Event()
        generate = model.generate

        def counted(**settings):
            self.sizes.append(len(settings["input_ids"]))
            self.entered.set()
            assert self.go.wait(20)
            return generate(**settings)

        monkeypatch.setattr(model, "generate", counted, raising=False)


def test_requests_that_wait_are_written_together(served, serve, monkeypatch, wait_until):
    counting = Counting(monkeypatch, served["lora"].model)
    said = {}
    with serve(served, batch_size=4) as (client, engine, _):
        questions = ["first", "2", "three, and longer", "4", "5", "six"]

        def ask(question):
            said[question] = client.chat("lora", question)[1]["choices"][0]["message"]["content"]

        threads = [threading.Thread(target=ask, args=[question]) for question in questions]
        threads[0].start()
        assert counting.entered.wait(20)
        for thread in threads[1:]:
            thread.start()
        wait_until(lambda: engine.open_jobs == 6)
        counting.go.set()
        for thread in threads:
            thread.join()
        assert counting.sizes == [1, 4, 1]
        for question in questions:
            assert said[question] == client.chat("lora", question)[1]["choices"][0]["message"]["content"]


def test_a_failure_ends_a_stream_with_an_error_event(served, serve, monkeypatch):
    """The model fails at its fifth token: what was written stays, an error follows, and the stream closes."""
    body = {
        "model": "circuits",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 20,
        "temperature": 0,
        "stream": True,
    }
    with serve(served) as (client, _, _):
        whole = client.chat("circuits", max_tokens=20)[1]["choices"][0]["message"]["content"]
        model, calls = served["circuits"].model.get_base_model(), []
        forward = model.forward

        def failing(*arguments, **settings):
            calls.append(1)
            if len(calls) == 5:
                raise QPeftError("the chip is gone")
            return forward(*arguments, **settings)

        with monkeypatch.context() as patch:
            patch.setattr(model, "forward", failing)
            connection, answer = client.send("POST", CHAT, body)
            assert answer.status == 200
            text = answer.read().decode()  # ends, since the stream is closed
            connection.close()
        events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        assert "[DONE]" not in events
        *chunks, last = map(json.loads, events)
        assert last == {"error": {"message": "the chip is gone", "type": "server_error", "param": None, "code": None}}
        written = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        assert written
        assert whole.startswith(written)
        assert written != whole
        assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks)
        assert client.chat("circuits", max_tokens=20)[1]["choices"][0]["message"]["content"] == whole


def test_a_stream_that_outlasts_the_servers_patience_is_told(served, serve):
    embeddings = served["lora"].model.get_input_embeddings()
    slow = embeddings.register_forward_pre_hook(lambda *_: time.sleep(0.01))  # or it is done before the server stops
    with slow, serve(served, drain_seconds=0) as (client, _, server):
        body = {"model": "lora", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 400, "seed": 1}
        connection, answer = client.send("POST", CHAT, {**body, "stream": True})
        assert answer.readline().startswith(b"data: ")
        server.stop()
        events = [line for line in answer.read().decode().split("\n\n") if line]
        connection.close()
    last = json.loads(events[-1].removeprefix("data: "))
    assert last["error"]["message"] == "the server is stopping"
    assert last["error"]["type"] == "server_error"


def statuses_here(port, n, leaving):
    return asyncio.run(storm(port, n, leaving))


def statuses_elsewhere(port, n, leaving):
    client = [sys.executable, storm_client.__file__, str(port), str(n), str(leaving)]
    return json.loads(subprocess.run(client, check=True, capture_output=True, timeout=300).stdout)


@pytest.mark.parametrize(
    ("n", "ask"),
    [pytest.param(300, statuses_here), pytest.param(10_000, statuses_elsewhere, marks=pytest.mark.slow)],
)
def test_a_storm_of_short_requests(served, serve, wait_until, n, ask):
    """Every client is answered or told to come again; those that leave take nobody along."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if limit != resource.RLIM_INFINITY and limit < n + 500:
        pytest.skip(f"needs {n + 500} open files, and the limit is {limit}")
    with serve(served, queue_size=64) as (client, engine, _):
        told = [status for status in ask(int(client.port), n, 0.2) if status is not None]
        assert set(told) == {200, 429}
        assert told.count(200) >= 20
        wait_until(lambda: engine.open_jobs == 0)
        assert engine.answered >= told.count(200)
        assert client.chat("circuits")[0] == 200


def test_an_engine_that_is_closed_tells_everyone(served):
    heard = Heard(served["lora"], "a", max_new_tokens=300)
    ended = threading.Event()
    ends = []
    engine = Engine(report=lambda job, event, seconds: (ends.append(event.reason), ended.set()))
    engine.submit(heard.job)
    engine.close()
    assert ended.is_set()
    assert ends == ["cancelled"]
