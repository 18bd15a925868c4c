"""Many connections at once to a server's `/v1/completions`, some of which leave without waiting.

As a program it takes port, number and share of leavers, and prints the statuses of the others: both ends of ten
thousand connections are more open files than one process may have.
"""

import asyncio
import json
import random
import sys


async def storm(port, n, leaving):
    """Statuses: None of a client that left, 0 of an answer that is not whole or not in its shape."""
    chance = random.Random(0)

    async def ask(number):
        streamed = number % 4 == 0
        name = ("circuits", "lora")[number % 2]
        body = {"model": name, "prompt": f"{number:05d}=", "max_tokens": 2, "temperature": 0, "stream": streamed}
        raw = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(raw)}\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + raw)
        if chance.random() < leaving:
            writer.close()
            return None
        answer = await reader.read()
        writer.close()
        status = int(answer[9:12] or 0)
        whole = b"[DONE]" in answer if streamed else b'"completion_tokens":' in answer
        again = b"etry-" in answer and b"queue_full" in answer
        return status if (whole if status == 200 else again) else 0

    return await asyncio.gather(*(ask(number) for number in range(n)))


if __name__ == "__main__":
    print(json.dumps(asyncio.run(storm(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))))
