"""The cloud behind HTTP, on this machine by default: requests in, JSON out, faults where the script wants them.

There is no real authentication: any key is taken, though one must be there. That is right for a service on the
loopback interface; elsewhere it must be asked for (``allow_remote``). Keys are neither kept nor logged.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from qpeft.cloud.faults import Fault, FaultScript
from qpeft.cloud.page import render_page
from qpeft.cloud.service import VirtualCloud
from qpeft.cloud.tampering import tamper
from qpeft.cloud.wire import PATHS, refused
from qpeft.errors import InputError

MAX_BODY = 64 << 20

_KEY_PREFIX = "oqcs_auth="
_READ_SECONDS = 60.0


class CloudServer:
    """A running server.

    Args:
        cloud: What answers.
        host: Address to listen on.
        port: 0 takes a free one.
        faults: What goes wrong.
        allow_remote: Listen on an address that other machines can reach.

    Attributes:
        url: Where it listens.

    Raises:
        InputError: An address that other machines can reach, or one that cannot be listened on.
    """

    def __init__(
        self,
        cloud: VirtualCloud,
        host: str = "127.0.0.1",
        port: int = 0,
        faults: FaultScript | None = None,
        allow_remote: bool = False,
    ) -> None:
        if not allow_remote and not _is_loopback(host):
            raise InputError(
                f"{host} can be reached from other machines, and the virtual cloud takes any key; "
                f"use 127.0.0.1, or --allow-remote if you mean it."
            )
        self.cloud = cloud
        self.faults = faults or FaultScript()
        self.stopping = threading.Event()
        try:
            self._server = _Server((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise InputError(f"cannot listen on {host}:{port}: {error}; choose another port, or 0.") from error
        self._server.owner = self
        address = f"[{host}]" if ":" in host else host
        self.url = f"http://{address}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening; the cloud itself stays as it is."""
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> CloudServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self.cloud.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    owner: CloudServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is not worth a traceback."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "qpeft"
    sys_version = ""
    timeout = _READ_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """The service tells what happens to tasks; request lines and headers are not logged."""

    def do_GET(self) -> None:
        if self.path in ("/", "/index.html"):
            page = render_page(self.server.owner.cloud).encode()
            self._send(200, page, "text/html; charset=utf-8")
        else:
            self._request({})

    def do_POST(self) -> None:
        try:
            length = int(self.headers.get("Content-Length", "0"))
        except ValueError:
            length = -1
        if not 0 <= length <= MAX_BODY:
            self.close_connection = True
            self._send_json(413, refused(f"a request may have at most {MAX_BODY} bytes"))
            return
        raw = self.rfile.read(length)
        try:
            body = json.loads(raw) if raw else {}
        except ValueError:
            body = None
        if not isinstance(body, dict):
            self._send_json(400, refused("the request is not a JSON object"))
            return
        self._request(body)

    def _request(self, body: dict[str, Any]) -> None:
        owner = self.server.owner
        endpoint = PATHS.get(self.path.partition("?")[0])
        if endpoint is None:
            self._send_json(404, refused("there is nothing here"))
            return
        if len(self.headers.get("Authorization", "").partition(_KEY_PREFIX)[2].strip()) == 0:
            self._send_json(401, refused("the key is missing"))
            return
        faults = {fault.fault: fault for fault in owner.faults.next(endpoint)}
        if "cut" in faults:
            self._cut()
            return
        if "status" in faults:
            self._fail(faults["status"])
            return
        if "refuse" in faults:
            self._send_json(200, refused(str(faults["refuse"].settings["message"])))
            return
        answer = owner.cloud.handle(endpoint, body)
        if "twice" in faults:
            answer = owner.cloud.handle(endpoint, body)
        if "drop" in faults:
            self._cut()
            return
        if "silence" in faults and owner.stopping.wait(faults["silence"].settings["seconds"]):
            self._cut()
            return
        if "late_error" in faults:
            self._fail(faults["late_error"])
            return
        if "garbage" in faults:
            self._send(200, b'{"success": true, "obj": {"task', "application/json")
            return
        self._send_json(200, _tampered(answer, list(faults.values())))

    def _fail(self, fault: Fault) -> None:
        wait = fault.settings.get("retry_after")
        headers = {} if wait is None else {"Retry-After": str(wait)}
        self._send_json(int(fault.settings["code"]), refused("the service is not available"), headers)

    def _cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _send_json(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(answer).encode(), "application/json", headers)

    def _send(self, status: int, content: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def _tampered(answer: Any, faults: list[Fault]) -> Any:
    if not isinstance(answer, dict) or not isinstance(answer.get("obj"), dict):
        return answer
    obj = answer["obj"]
    for fault in faults:
        obj = {} if fault.fault == "no_id" else tamper(fault, obj)
    return {**answer, "obj": obj}


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
