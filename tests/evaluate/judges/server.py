"""A chat endpoint on this machine that answers by a rule, and fails as often as a test wants."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = ("429", "500", "slow", "garbage", "cut", "empty", "null")
"""Ways to fail before an answer is given."""


class Endpoint(ThreadingHTTPServer):
    """Answers chat requests.

    Args:
        answer: question -> text.
        faults: number of a question's request (from 0), question -> a fault, or "" for none.
        slow: seconds that the fault "slow" takes.
        delay: seconds that every answer takes.
    """

    daemon_threads = True

    def __init__(
        self,
        answer: Callable[[str], str] = lambda _: "yes",
        faults: Callable[[int, str], str] = lambda *_: "",
        slow: float = 1.0,
        delay: float = 0.0,
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.faults, self.slow, self.delay = answer, faults, slow, delay
        self.requests: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.guard = threading.Lock()

    def handle_error(self, *_: object) -> None:
        """Clients that were killed are expected."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def log_message(self, *_: object) -> None:
        return

    def do_POST(self) -> None:
        try:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        except (ValueError, OSError):  # the client was killed in the middle of its question
            self.close_connection = True
            return
        content = body["messages"][-1]["content"]
        question = content[-1]["text"]
        pictures = [part["image_url"]["url"] for part in content[:-1]]
        asked = question + "".join(hashlib.sha256(one.encode()).hexdigest()[:8] for one in pictures)
        with self.server.guard:
            number = self.server.requests[asked]
            self.server.requests[asked] += 1
            self.server.bodies.append(body)
            self.server.keys.add(self.headers.get("authorization"))
        time.sleep(self.server.delay)
        fault = self.server.faults(number, question)
        if fault.isdigit():
            error = {"error": {"code": fault, "message": f"fault {fault}"}}
            self.reply(int(fault), json.dumps(error).encode(), {"retry-after": "0.01"})
        elif fault == "policy":
            error = {"error": {"code": "content_policy_violation", "message": "not this picture"}}
            self.reply(400, json.dumps(error).encode())
        elif fault == "slow":
            time.sleep(self.server.slow)
            self.reply(200, self.answer(question))
        elif fault == "garbage":
            self.reply(200, b"<html>an overloaded proxy</html>")
        elif fault == "cut":
            data = self.answer(question)
            self.send_response(200)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif fault == "empty":
            self.reply(200, b'{"choices": []}')
        elif fault == "null":
            self.reply(200, b'{"choices": [{"message": {"content": null}}]}')
        else:
            self.reply(200, self.answer(question))
            with self.server.guard:
                self.server.answered[asked] += 1

    def answer(self, question: str) -> bytes:
        text = self.server.answer(question)
        likeliest = [
            {"token": "Yes", "logprob": -0.5}, {"token": " yes", "logprob": -2.0},
            {"token": "No", "logprob": -1.5},
        ]  # fmt: skip
        choice = {
            "message": {"role": "assistant", "content": text}, "finish_reason": "stop",
            "logprobs": {"content": [{"token": "Yes", "top_logprobs": likeliest}]},
        }  # fmt: skip
        told = {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 2}}
        return json.dumps(told).encode()

    def reply(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        try:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


@contextmanager
def endpoint(**options: Any) -> Iterator[Endpoint]:
    """A running endpoint."""
    server = Endpoint(**options)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
