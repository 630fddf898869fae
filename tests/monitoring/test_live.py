"""What pages are told, without HTTP: readers that lag, a server that begins anew, the machine's past."""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta

import httpx2
import pytest

from monitoring.live import WAITING_EVENTS, Live, read_system
from monitoring.request_files import system_path
from monitoring.served import Scrape, Server, ServerError


async def test_a_page_that_does_not_read_is_let_go_and_others_go_on(tmp_path):
    """It must not fill the memory; its browser comes back by itself."""
    async with httpx2.AsyncClient() as client:
        live = Live(tmp_path, None, None, client, try_off=None)
        lagging, reading = live.stream(), live.stream()
        await anext(lagging)
        await anext(reading)
        for _ in range(WAITING_EVENTS + 1):
            await live._tick()
            assert b'"rows"' in await anext(reading)
        assert [event async for event in lagging] == []
        await live._tick()
        assert b'"rows"' in await anext(reading)
        assert len(live._pages) == 1
        live.close()
        assert [event async for event in reading] == []
        assert not live._pages


async def test_what_has_not_changed_is_not_sent_again(tmp_path):
    async with httpx2.AsyncClient() as client:
        live = Live(tmp_path, None, None, client, try_off=None)
        stream = live.stream()
        first = json.loads((await anext(stream)).partition(b"data: ")[2])
        assert first["files"]["folder"] == str(tmp_path)
        await live._tick()
        await anext(stream)
        await live._tick()
        assert "files" not in json.loads((await anext(stream)).removeprefix(b"data: "))
        live.parts["files"] = live.parts["files"] | {"standing": "missing"}
        await live._tick()
        assert json.loads((await anext(stream)).removeprefix(b"data: "))["files"]["standing"] == "missing"
        await stream.aclose()


def scrape(at, tokens):
    return Scrape(
        at, 1, 2, prompt_tokens_total=tokens, generated_tokens_total=2 * tokens, memory_bytes=1, memory_limit_bytes=2
    )


def test_token_rates_are_of_the_time_between_two_scrapes():
    told = scrape(12.0, 300).since(scrape(10.0, 200))
    assert told == {"waiting": 1, "running": 2, "prompt_tokens_s": 50, "generated_tokens_s": 100}


@pytest.mark.parametrize("earlier", [None, scrape(10.0, 400), scrape(12.0, 300)])
def test_a_server_that_began_anew_has_no_rate_yet(earlier):
    told = scrape(12.0, 300).since(earlier)
    assert (told["prompt_tokens_s"], told["generated_tokens_s"]) == (None, None)
    assert told["waiting"] == 1


@pytest.mark.parametrize("text", ["", "<html>", "qwen3_running 0\n", 'qwen3_running{a="b" 0', "\x00" * 100])
async def test_metrics_that_are_none_are_told(text):
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, text=text))
    async with httpx2.AsyncClient(transport=transport) as client:
        server = Server("http://s", None, None, client)
        with pytest.raises(ServerError) as told:
            await server.scrape(1.0)
        with pytest.raises(ServerError):
            await server.describe()
    assert told.value.standing == "unusable"


def test_the_machines_past_is_read_and_what_cannot_be_read_left_out(tmp_path):
    now = datetime.now().astimezone()

    def minute(ago, **more):
        row = {"timestamp": (now - timedelta(minutes=ago)).isoformat(), "cpu_percent": ago, "memory_percent": 50}
        return json.dumps(row | more)

    lines = [minute(400), minute(3), "{", '{"timestamp": 1}', minute(2, cpu_percent=None), minute(-60), minute(1)]
    system_path(tmp_path, now.date()).write_text("\n".join(lines) + '\n{"timest', encoding="utf-8")
    found = read_system(tmp_path, time.time() - 1800)
    assert [(cpu, memory) for _, cpu, memory in found] == [(3, 50), (1, 50)]
