"""Many short requests to `qpeft serve`: requests a second, refusals, errors, and the server's memory on the way.

    python benchmarks/serve_load.py                        # 10,000 requests, 64 at a time, against the tiny model
    python benchmarks/serve_load.py --burst 2000           # and 2,000 connections at once against a queue of 64

The server is a process of its own with the tests' tiny random Llama (2 layers, 32 wide) as base and a QTHA adapter on
it, asked in turn; a request has 5 tokens and its answer 2, every fourth is streamed. A client that is refused (429)
asks again, so with no more clients than places in the queue no request should fail. Memory is the server's resident
set, read after every tenth of the requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

MODELS = ("adapter", "tiny-llama")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=64, help="requests under way at once")
    parser.add_argument("--burst", type=int, default=0, help="connections at once, afterwards")
    parser.add_argument("--batch", type=int, default=8, help="requests for one model that are answered together")
    options = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        base, adapter = _models(Path(folder))
        command = [sys.executable, "-m", "qpeft", "serve", str(adapter), "--base", str(base), "--port", "0", "-q"]
        command += ["--batch", str(options.batch)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            try:
                port = int(server.stdout.readline().rpartition(":")[2])
                asyncio.run(_steady(port, psutil.Process(server.pid), options.requests, options.clients))
                if options.burst:
                    asyncio.run(_burst(port, options.burst))
            finally:
                server.terminate()
        print(f"the server ended with code {server.returncode}")


async def _steady(port: int, server: psutil.Process, n: int, clients: int) -> None:
    counts: Counter[int] = Counter()
    numbers = iter(range(n))
    memory: list[float] = []
    start = time.perf_counter()

    async def client() -> None:
        for number in numbers:
            while (status := await _ask(port, number)) == 429:
                counts[429] += 1
                await asyncio.sleep(0.2)
            counts[status] += 1
            if counts[200] % max(1, n // 10) == 0:
                memory.append(server.memory_info().rss / 2**20)

    await asyncio.gather(*(client() for _ in range(clients)))
    seconds = time.perf_counter() - start
    failed = sum(many for status, many in counts.items() if status not in (200, 429))
    print(f"{counts[200]:,} answered in {seconds:.1f} s ({counts[200] / seconds:.0f} a second), "
          f"{counts[429]:,} refusals, {failed} errors")  # fmt: skip
    print("resident memory, MiB: " + " ".join(f"{one:.0f}" for one in memory))


async def _burst(port: int, n: int) -> None:
    start = time.perf_counter()
    counts = Counter(await asyncio.gather(*(_ask(port, number) for number in range(n))))
    print(f"{n:,} connections at once: {dict(sorted(counts.items()))} in {time.perf_counter() - start:.1f} s")


async def _ask(port: int, number: int) -> int:
    """One request on a connection of its own; its status, or 0 where the answer is not whole."""
    body = {"model": MODELS[number % 2], "prompt": f"{number % 10_000:04d}=", "max_tokens": 2, "temperature": 0}
    streamed = number % 4 == 0
    raw = json.dumps({**body, "stream": streamed}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(raw)}\r\n\r\n"
    )
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + raw)
        answer = await reader.read()
        writer.close()
    except OSError:
        return 0
    status = int(answer[9:12] or 0)
    whole = b"[DONE]" in answer if streamed else b'"completion_tokens":' in answer
    return status if status != 200 or whole else 0


def _models(folder: Path) -> tuple[Path, Path]:
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from qpeft import QTHAConfig
    from tiny_base import save_llama

    base = save_llama(folder / "tiny-llama")
    config = QTHAConfig(r=2, bond_dim=2, inner_features=8, target_modules=["q_proj", "v_proj"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder / "adapter")
    return base, folder / "adapter"


if __name__ == "__main__":
    main()
