"""What a failed call over the network proves, for clients that are built on ``requests``.

A connection that was never made and a refusal (HTTP 4xx) prove that the vendor has no job. A time-out, a connection
lost later, a server error and everything that is not understood prove nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from qpeft.qpu.protocol import NotAcceptedError, ProviderError, UnknownOutcome


def submission_error(error: BaseException, vendor: str, key: str, own: type[BaseException]) -> ProviderError:
    """The error of the protocol for a failed submission.

    Args:
        error: What the client raised.
        vendor: Whom the message names.
        key: Environment variable with the credentials; its value is kept out of the message.
        own: The client's own errors: without a failed request behind them, the client has sent nothing.
    """
    import requests
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

    chain = list(_chain(error))
    what = describe(error, key)
    status = _status(chain)
    if status in (401, 403):
        return ProviderError(f"{vendor} refused the credentials ({what}); check {key}.")
    if status == 429:
        return NotAcceptedError(f"{vendor} takes no more jobs for now ({what}).", retry_after=_retry_after(chain))
    if status is not None and 400 <= status < 500 and status != 408:
        return NotAcceptedError(f"{vendor} refused the job ({what}).", lasting=True)
    if any(isinstance(link, (NewConnectionError, ConnectTimeoutError, requests.ConnectTimeout)) for link in chain):
        return NotAcceptedError(f"{vendor} could not be reached ({what}).")
    network = any(isinstance(link, (requests.RequestException, OSError)) for link in chain)  # TimeoutError is one too
    if status is None and not network and isinstance(error, own):
        return NotAcceptedError(f"{vendor}'s client refused the job before sending it ({what}).", lasting=True)
    return UnknownOutcome(f"{vendor} may have taken the job ({what}).")


def describe(error: BaseException, key: str) -> str:
    """Kind of an error and its first words, without the credentials."""
    status = _status(list(_chain(error)))
    kind = type(error).__name__ if status is None else f"HTTP {status}"
    text = " ".join(str(error).split())
    secret = os.environ.get(key)
    if secret:
        text = text.replace(secret, "***")
    return f"{kind}: {text[:200]}" if text else kind


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and all that led to it, also what requests and urllib3 keep in their arguments."""
    todo, seen = [error], set()
    while todo:
        link = todo.pop(0)
        if id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        inner = (link.__cause__, link.__context__, getattr(link, "reason", None), *link.args)
        todo += [part for part in inner if isinstance(part, BaseException)]


def _status(chain: list[BaseException]) -> int | None:
    for link in chain:
        for holder in (link, getattr(link, "response", None)):
            status = getattr(holder, "status_code", None)
            if isinstance(status, int) and status > 0:
                return status
    return None


def _retry_after(chain: list[BaseException]) -> float | None:
    for link in chain:
        headers = getattr(getattr(link, "response", None), "headers", None)
        if headers is not None:
            try:
                return max(0.0, float(headers.get("Retry-After", "")))
            except ValueError:
                return None
    return None
