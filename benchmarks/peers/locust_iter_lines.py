"""A locustfile as Locust's documentation leads to: streams read with ``iter_lines``, each line parsed as it comes.

Runs in Locust's own environment, without any module of ours.
"""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

from locust import FastHttpUser, constant, events, task
from locust.exception import StopUser

ROWS: list[dict[str, Any]] = []
NUMBERS = itertools.count()


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _arguments(parser: Any) -> None:
    parser.add_argument("--stream-model", required=True)
    parser.add_argument("--stream-requests", type=int, required=True)
    parser.add_argument("--stream-out", required=True)


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def _write(environment: Any, **_: Any) -> None:
    Path(environment.parsed_options.stream_out).write_text(json.dumps(ROWS), encoding="utf-8")


class Caller(FastHttpUser):  # type: ignore[misc]
    wait_time = constant(0)

    @task  # type: ignore[untyped-decorator]
    def stream(self) -> None:
        options = self.environment.parsed_options
        number = next(NUMBERS)
        if number >= options.stream_requests:
            if len(ROWS) >= options.stream_requests:
                self.environment.runner.quit()
            raise StopUser
        row: dict[str, Any] = {"first_s": None, "last_s": None, "tokens": None, "error": None}
        body = {
            "model": options.stream_model,
            "messages": [{"role": "user", "content": f"Parcel number {number % 8} has not come. What can I do?"}],
            "max_tokens": 64,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        begin = time.perf_counter()
        try:
            for line in self.client.iter_lines("/v1/chat/completions", method="POST", json=body):
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line[6:])
                if event.get("usage"):
                    row["tokens"] = event["usage"]["completion_tokens"]
                if event["choices"] and event["choices"][0]["delta"].get("content"):
                    row["last_s"] = time.perf_counter() - begin
                    if row["first_s"] is None:
                        row["first_s"] = row["last_s"]
        except Exception as error:  # whatever it is, the others go on
            row["error"] = f"{type(error).__name__}: {error}"
        if row["first_s"] is None and row["error"] is None:
            row["error"] = "no token"
        ROWS.append(row)
