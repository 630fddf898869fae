"""Clients of a live test: each request on a connection of its own, and every answer kept with its times."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

KEY = "a-key-of-the-tests"
TEXT = "宽带断了三天没人来修"


def stream(host, port=80, tokens=60, limit_s=60.0):
    """One stream of ``tokens`` tokens: "whole", or what happened to it."""
    body = {"model": "complaints-tiny", "stream": True, "max_tokens": tokens, "ignore_eos": True}
    body["messages"] = [{"role": "user", "content": "你好"}]
    return _post(host, port, "/v1/chat/completions", body, limit_s, last=b"data: [DONE]")


def call(host, port=80, limit_s=5.0):
    """One text classified: "whole", or what happened to it."""
    return _post(host, port, "/api/v1/classify", {"text": TEXT}, limit_s, last=b'{"category":')


def _post(host, port, path, body, limit_s, last):
    connection = http.client.HTTPConnection(host, port, timeout=limit_s)
    try:
        connection.request("POST", path, json.dumps(body), {"Authorization": f"Bearer {KEY}"})
        answer = connection.getresponse()
        lines = [line for line in answer.read().splitlines() if line]
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()
    whole = answer.status == 200 and lines and lines[-1].startswith(last)
    return "whole" if whole else f"{answer.status} {lines[-1:]}"


@dataclass
class Answer:
    started: float
    ended: float
    what: str


@dataclass
class Traffic:
    """``at_once`` clients, which may be changed meanwhile, that call ``ask`` again and again."""

    ask: object
    at_once: int
    pause_s: float = 0.0
    most: int = 0
    answers: list[Answer] = field(default_factory=list)

    def __post_init__(self):
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,)) for number in range(max(self.at_once, self.most))
        ]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number):
        while not self._stop.is_set():
            if number >= self.at_once:
                self._stop.wait(0.1)
                continue
            started = time.monotonic()
            what = self.ask()
            self.answers.append(Answer(started, time.monotonic(), what))
            self._stop.wait(self.pause_s)

    def counts(self, since=0.0):
        """What became of those that began after ``since``."""
        return Counter(answer.what for answer in self.answers if answer.started >= since)


def wait_until(holds, what, limit_s=60.0, period_s=0.2):
    """Seconds until ``holds()``."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < limit_s, f"not within {limit_s:.0f} s: {what}"
        time.sleep(period_s)
    return time.monotonic() - began
