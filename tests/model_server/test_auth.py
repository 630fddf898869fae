from __future__ import annotations

import hashlib

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from model_server.auth import Keys, RateLimit, read_keys
from model_server.errors import AuthenticationError, ConfigurationError, RateLimitError

KEY = "sk-correct-horse-battery"


@pytest.fixture
def keys_file(tmp_path):
    def write(text):
        path = tmp_path / "keys"
        path.write_text(text)
        return path

    return write


def test_keys_are_read_with_and_without_names(keys_file):
    keys = read_keys(keys_file(f"# those of March\n\nshop:{KEY}\nsk-other\n"))

    assert keys.name_of(f"Bearer {KEY}".encode()) == "shop"
    assert keys.name_of(b"bearer sk-other") == f"key-{hashlib.sha256(b'sk-other').hexdigest()[:8]}"


def test_keys_are_not_kept(keys_file):
    assert KEY not in repr(read_keys(keys_file(KEY)))


@pytest.mark.parametrize(
    "header", [None, b"", b"Bearer", b"Bearer ", b"Bearer wrong", b"Basic " + KEY.encode(), KEY.encode()]
)
def test_anything_else_is_refused(keys_file, header):
    with pytest.raises(AuthenticationError):
        read_keys(keys_file(KEY)).name_of(header)


@given(st.binary(max_size=60))
def test_no_header_breaks_the_check(header):
    keys = Keys(((hashlib.sha256(KEY.encode()).digest(), "shop"),))
    if header.partition(b" ")[2].strip() != KEY.encode():
        with pytest.raises(AuthenticationError):
            keys.name_of(header)


@pytest.mark.parametrize(
    ("text", "told"),
    [("", "holds no key"), ("# nothing\n", "holds no key"), ("shop:\n", ":1: expected"), ("a\nb:a\n", "the same")],
)
def test_a_key_file_that_cannot_be_used_says_why(keys_file, text, told):
    with pytest.raises(ConfigurationError, match=told):
        read_keys(keys_file(text))


def test_a_missing_key_file_says_so(tmp_path):
    with pytest.raises(ConfigurationError, match="No such file"):
        read_keys(tmp_path / "nothing")


def test_a_key_may_send_its_number_of_requests_in_any_minute():
    now = [1000.0]
    limit = RateLimit(3, clock=lambda: now[0])
    for at in (0, 10, 20):
        now[0] = 1000.0 + at
        limit.hit("shop")
    limit.hit("other")

    with pytest.raises(RateLimitError) as caught:
        limit.hit("shop")
    assert caught.value.retry_after_s == 40
    now[0] = 1060.0
    limit.hit("shop")
    with pytest.raises(RateLimitError):
        limit.hit("shop")


def test_no_limit_is_no_limit():
    limit = RateLimit(None)
    for _ in range(1000):
        limit.hit("shop")


def test_callers_of_long_ago_are_forgotten():
    now = [0.0]
    limit = RateLimit(3, clock=lambda: now[0])
    for n in range(100):
        limit.hit(f"10.0.0.{n}")
    now[0] = 61.0
    limit.hit("10.0.1.1")

    assert list(limit._hits) == ["10.0.1.1"]


async def test_keys_guard_everything_but_health_and_the_docs(serve, keys_file):
    served = await serve(keys=read_keys(keys_file(f"shop:{KEY}")))
    body = {"text": "你好", "max_tokens": 2}
    right, wrong = {"authorization": f"Bearer {KEY}"}, {"authorization": f"Bearer {KEY}x"}

    for path in ("/health", "/ready", "/docs", "/openapi.json"):
        assert (await served.ask(path)).status_code == 200, path
    for path in ("/api/v1/model", "/v1/models", "/metrics", "/nothing"):
        assert (await served.ask(path)).status_code == 401, path
    for path in ("/api/v1/inference", "/api/v1/classify", "/v1/chat/completions", "/v1/completions"):
        assert (await served.ask(path, body)).status_code == 401, path
        assert (await served.ask(path, body, headers=wrong)).status_code == 401, path
    refused = await served.ask("/api/v1/inference", body)
    with structlog.testing.capture_logs() as lines:
        answer = await served.ask("/api/v1/inference", body, headers=right)

    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.json()["error"]["type"] == "authentication_error"
    assert served.engine.prompts == served.engine.prompts[:1]
    assert answer.status_code == 200
    assert lines[-1]["key"] == "shop"
    assert KEY not in str(lines)


async def test_the_rate_is_counted_per_key(serve, keys_file):
    served = await serve(keys=read_keys(keys_file(f"a:{KEY}\nb:sk-2")), rate_limit_per_minute=2)

    async def ask(key):
        headers = {"authorization": f"Bearer {key}"}
        return await served.ask("/api/v1/inference", {"text": "你好", "max_tokens": 1}, headers=headers)

    statuses = [(await ask(key)).status_code for key in (KEY, KEY, KEY, "sk-2")]
    refused = await ask(KEY)

    assert statuses == [200, 200, 429, 200]
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert served.metric("qwen3_rejected_total", reason="rate_limit") == 2


async def test_health_is_never_rate_limited(serve):
    served = await serve(rate_limit_per_minute=1)

    assert {(await served.ask("/health")).status_code for _ in range(5)} == {200}
