from __future__ import annotations

import asyncio
import json
import time

import fake_engine
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_server.admission import Admission
from model_server.errors import OverloadedError


def admission(**settings):
    return Admission(**({"slots": 2, "kv_tokens": None, "max_queue": 3, "limit_s": 60} | settings))


async def hold(places, tokens, started, name, release):
    async with places.place(tokens):
        started.append(name)
        await release.wait()


async def turns():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_slots_are_given_in_the_order_of_arrival():
    places, started, release = admission(), [], [asyncio.Event() for _ in range(5)]
    tasks = [asyncio.create_task(hold(places, 1, started, n, release[n])) for n in range(5)]
    await turns()
    assert (started, places.running, places.waiting) == ([0, 1], 2, 3)

    release[1].set()
    await turns()
    assert started == [0, 1, 2]
    release[0].set()
    release[2].set()
    await turns()
    assert started == [0, 1, 2, 3, 4]

    for event in release:
        event.set()
    await asyncio.gather(*tasks)
    assert (places.running, places.waiting, places.reserved_tokens) == (0, 0, 0)


async def test_cache_tokens_are_reserved_before_a_request_starts():
    """A small request does not overtake a large one, or the large one might never fit."""
    places, started, release = admission(slots=9, kv_tokens=100), [], [asyncio.Event() for _ in range(3)]
    tasks = [asyncio.create_task(hold(places, tokens, started, n, release[n])) for n, tokens in enumerate([60, 50, 10])]
    await turns()
    assert started == [0]

    release[0].set()
    await turns()
    assert started == [0, 1, 2]
    for event in release:
        event.set()
    await asyncio.gather(*tasks)


async def test_a_request_larger_than_the_pool_runs_alone():
    """Its length is an estimate where the engine tokenises; the engine has the last word."""
    places, release = admission(kv_tokens=100), asyncio.Event()
    release.set()

    await hold(places, 500, [], 0, release)

    assert places.reserved_tokens == 0


async def test_a_full_queue_refuses_at_once():
    places, release = admission(max_queue=1), asyncio.Event()
    tasks = [asyncio.create_task(hold(places, 1, [], n, release)) for n in range(3)]
    await turns()

    with pytest.raises(OverloadedError, match="1 requests are waiting") as caught:
        places.refuse_if_full()
    with pytest.raises(OverloadedError):
        async with places.place(1):
            pass

    assert caught.value.retry_after_s == 1
    release.set()
    await asyncio.gather(*tasks)


async def test_retry_after_follows_the_measured_rate():
    """Two slots of 0.3 s each serve 6.7 requests a second: those 20 that wait and the next take 3.2 s."""
    places, release = admission(max_queue=20), asyncio.Event()
    for _ in range(3):
        async with places.place(1):
            await asyncio.sleep(0.3)
    tasks = [asyncio.create_task(hold(places, 1, [], n, release)) for n in range(22)]
    await turns()

    with pytest.raises(OverloadedError) as caught:
        places.refuse_if_full()

    assert places.expected_wait_s() == pytest.approx(21 * 0.3 / 2, rel=0.4)
    assert caught.value.retry_after_s in (3, 4, 5)
    release.set()
    await asyncio.gather(*tasks)


async def test_who_could_not_be_answered_in_time_is_refused_though_there_is_room():
    places, release = admission(max_queue=100, limit_s=1.0), asyncio.Event()
    async with places.place(1):
        await asyncio.sleep(0.3)
    tasks = [asyncio.create_task(hold(places, 1, [], n, release)) for n in range(9)]
    await turns()

    with pytest.raises(OverloadedError, match="would take about 1 s, more than request_timeout_s"):
        places.refuse_if_full()

    release.set()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_leaving_the_queue_lets_the_next_one_move_up():
    places, started, release = admission(slots=9, kv_tokens=100), [], asyncio.Event()
    tasks = [asyncio.create_task(hold(places, tokens, started, n, release)) for n, tokens in enumerate([60, 90, 20])]
    await turns()
    assert started == [0]

    tasks[1].cancel()
    await turns()

    assert started == [0, 2]
    assert places.waiting == 0
    release.set()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_fewer_slots_let_those_who_run_finish():
    places, started = admission(slots=3), []
    release = [asyncio.Event() for _ in range(4)]
    tasks = [asyncio.create_task(hold(places, 1, started, n, release[n])) for n in range(4)]
    await turns()

    places.resize(1, None)
    release[0].set()
    release[1].set()
    await turns()
    assert (places.running, started) == (1, [0, 1, 2])
    release[2].set()
    await turns()
    assert started == [0, 1, 2, 3]
    release[3].set()
    await asyncio.gather(*tasks)


@settings(max_examples=60, deadline=None)
@given(
    slots=st.integers(1, 4),
    pool=st.none() | st.integers(10, 60),
    requests=st.lists(st.tuples(st.integers(1, 50), st.integers(0, 4), st.booleans()), max_size=25),
)
def test_nothing_is_ever_overbooked_or_lost(slots, pool, requests):
    """Requests of all sizes come, end and are cancelled in any order."""

    async def play():
        places = admission(slots=slots, kv_tokens=pool, max_queue=100)
        done = []

        async def one(tokens, steps):
            async with places.place(tokens):
                assert places.running <= slots
                assert pool is None or places.reserved_tokens <= pool
                for _ in range(steps):
                    await asyncio.sleep(0)
            done.append(tokens)

        tasks = []
        for tokens, steps, leaves in requests:
            tasks.append(asyncio.create_task(one(tokens, steps)))
            await asyncio.sleep(0)
            if leaves:
                tasks[len(tasks) // 2].cancel()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert [type(result) for result in results if isinstance(result, AssertionError)] == []
        assert len(done) + sum(isinstance(result, asyncio.CancelledError) for result in results) == len(tasks)
        assert (places.running, places.waiting, places.reserved_tokens) == (0, 0, 0)

    asyncio.run(play())


# -- the same, seen by clients ----------------------------------------------------------------------------


def chat(max_tokens, *, stream=True):
    body = {
        "model": "qwen3-test",
        "messages": [{"role": "user", "content": "你好"}],
        "max_tokens": max_tokens,
        "stream": stream,
    }
    data = json.dumps(body).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(data)
    return head + data


async def test_a_client_that_leaves_stops_the_engine(serve, until):
    served = await serve(fake_engine.FakeEngine(token_s=0.01))
    reader, writer = await served.send(chat(1000))
    await reader.readuntil(b"data: ")

    writer.close()
    await until(lambda: served.engine.cancelled)

    [sent] = served.engine.cancelled
    await until(lambda: served.metric("qwen3_cancelled_total", reason="client_gone") == 1)
    assert sent < 500
    saved = served.metric("qwen3_cancelled_tokens_saved_total")
    assert 1000 - sent - 2 <= saved <= 1000 - sent
    assert served.service.admission.running == 0
    status = {"endpoint": "chat_completions", "status": "499"}
    assert served.metric("qwen3_inference_requests_total", **status) == 1


async def test_a_client_that_leaves_before_its_answer_is_whole_stops_the_engine(serve, until):
    served = await serve(fake_engine.FakeEngine(token_s=0.01))
    _, writer = await served.send(chat(1000, stream=False))
    await until(lambda: served.engine.generating)

    writer.close()

    await until(lambda: served.engine.cancelled)


async def test_a_client_that_leaves_the_queue_is_never_computed(serve, until):
    served = await serve(fake_engine.FakeEngine(token_s=0.01, slots=1))
    _, first = await served.send(chat(100))
    await until(lambda: served.engine.generating)
    _, second = await served.send(chat(100))
    await until(lambda: served.service.admission.waiting == 1)

    second.close()
    await until(lambda: served.service.admission.waiting == 0)
    first.close()
    await until(lambda: served.service.admission.running == 0)

    assert len(served.engine.prompts) == 1


async def test_a_full_queue_is_429_with_retry_after(serve, until):
    served = await serve(fake_engine.FakeEngine(token_s=0.01, slots=1), max_queue=1)
    running = [await served.send(chat(1000)) for _ in range(2)]
    await until(lambda: served.service.admission.waiting == 1)

    answer = await served.ask("/api/v1/inference", {"text": "你好"})

    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["code"] == "overloaded"
    assert served.metric("qwen3_rejected_total", reason="queue_full") == 1
    assert served.metric("qwen3_queue_depth") == 1
    assert served.metric("qwen3_running") == 1
    for _, writer in running:
        writer.close()


async def test_no_more_than_the_slots_are_computed_at_once(serve):
    served = await serve(fake_engine.FakeEngine(token_s=0.001, slots=3))

    answers = await asyncio.gather(
        *(served.ask("/api/v1/inference", {"text": "你好", "max_tokens": 5}) for _ in range(20))
    )

    assert {answer.status_code for answer in answers} == {200}
    assert served.engine.most_generating == 3


async def test_a_request_that_takes_too_long_is_504(serve):
    served = await serve(fake_engine.FakeEngine(token_s=0.01), request_timeout_s=0.2)

    answer = await served.ask("/api/v1/inference", {"text": "你好", "max_tokens": 4000})

    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "timeout"
    assert len(served.engine.cancelled) == 1
    assert served.metric("qwen3_cancelled_total", reason="timeout") == 1


async def test_a_stream_that_takes_too_long_ends_with_an_error_event(serve, events):
    served = await serve(fake_engine.FakeEngine(token_s=0.01), request_timeout_s=0.2)
    body = {"model": "qwen3-test", "prompt": "你好", "max_tokens": 4000, "stream": True}

    answer = await served.ask("/v1/completions", body)

    told = events(answer.text)
    assert answer.status_code == 200
    assert told[-1]["error"]["code"] == "timeout"
    assert "[DONE]" not in told


async def test_health_and_refusals_are_quick_while_streams_run(serve, until):
    """Shown here against the time of the streams, measured in milliseconds by the benchmarks."""
    served = await serve(fake_engine.FakeEngine(token_s=0.02, slots=16), max_queue=0)
    streams = [await served.send(chat(2000)) for _ in range(16)]
    await until(lambda: served.engine.generating == 16)
    began = time.monotonic()

    health = [await served.ask("/health") for _ in range(20)]
    refused = [await served.ask("/api/v1/inference", {"text": "你好"}) for _ in range(20)]

    assert {answer.status_code for answer in health} == {200}
    assert {answer.status_code for answer in refused} == {429}
    assert time.monotonic() - began < 2000 * 0.02 / 4
    for _, writer in streams:
        writer.close()
    await until(lambda: len(served.engine.cancelled) == 16)
