"""Schemathesis makes requests from our own OpenAPI page, valid ones and broken ones, against a real server."""

from __future__ import annotations

import socket
import threading

import fake_engine
import pytest
import schemathesis
import uvloop
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks

from model_server import listener
from model_server.app import create_app

PATHS = [
    ("POST", "/api/v1/inference"),
    ("POST", "/api/v1/classify"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("GET", "/api/v1/model"),
    ("GET", "/health"),
    ("GET", "/ready"),
]
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]


@pytest.fixture(scope="module")
def api():
    """A server in a thread of its own, and what it says about itself."""
    sock = socket.create_server(("127.0.0.1", 0))
    app = create_app(fake_engine.FakeEngine(), fake_engine.environment(), classifier=fake_engine.settings())
    server = listener.listen(app, body_s=60)
    thread = threading.Thread(target=lambda: uvloop.run(server.serve(sockets=[sock])))
    thread.start()
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    yield schemathesis.openapi.from_url(f"{url}/openapi.json")
    server.should_exit = True
    thread.join(10)


def test_every_operation_is_fuzzed(api):
    assert [(method.upper(), path) for path in api for method in api[path]] != []
    assert {(method.upper(), path) for path in api for method in api[path]} == set(PATHS)


@pytest.mark.parametrize(("method", "path"), PATHS, ids=lambda value: value)
def test_requests_of_the_page_get_answers_of_the_page(api, method, path):
    play(api[path][method], GenerationMode.POSITIVE)


@pytest.mark.parametrize("path", [path for method, path in PATHS if method == "POST"])
def test_broken_requests_are_refused_as_the_page_says(api, path):
    play(api[path]["POST"], GenerationMode.NEGATIVE)


def play(operation, mode):
    @settings(
        max_examples=60 if operation.method.upper() == "POST" else 10,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def answers(case):
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = "qwen3-test"  # any other name ends at the 404
        case.call_and_validate(checks=CHECKS, timeout=30)

    answers()


def test_the_server_is_unharmed(api):
    answer = api["/health"]["GET"].Case().call()

    assert answer.status_code == 200
    assert answer.json()["running"] == 0
