"""Recovery, against engines that fail on command. The real process is killed in engines/test_openvino.py."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from model_server import recovery
from model_server.engine import Chunk, EngineHealth, EngineInfo, Prompt, Sampling
from model_server.errors import EngineError, EngineUnavailableError, ModelLoadError, ResourceInsufficientError
from model_server.recovery import RecoveringEngine

PROMPT = Prompt("ab", tokens=2)
SAMPLING = Sampling(max_tokens=3)


class ScriptedEngine:
    """Fails to load as told, then yields three chunks, or dies before or after the first of them."""

    def __init__(self, source, slots, load_error=None, die_after=None):
        self.source, self.slots, self.load_error, self.die_after = source, slots, load_error, die_after
        self.state, self.out_of_memory, self.closed, self.prompts = "starting", False, False, []

    async def load(self):
        if self.load_error is not None:
            raise self.load_error
        self.state = "ready"
        return EngineInfo("scripted", "m", self.source, "cpu", 100, self.slots)

    def prompt(self, content):
        return Prompt(f"{self.source}:{content}", tokens=len(content))

    async def generate(self, prompt, sampling):
        self.prompts.append(prompt.text)
        for index in range(sampling.max_tokens):
            if self.die_after == index:
                self.state = "dead"
                raise EngineError("died") if index else EngineUnavailableError("died")
            yield Chunk(str(index), finish_reason="length" if index == sampling.max_tokens - 1 else None)

    async def score(self, prompts, label_ids):
        if self.die_after == 0:
            self.state = "dead"
            raise EngineUnavailableError("died")
        return [[-1.0 for _ in label_ids] for _ in prompts]

    def health(self):
        return EngineHealth(self.state, "died", slots=self.slots, out_of_memory=self.out_of_memory)

    async def close(self):
        self.closed = True


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(recovery, "BACKOFF_S", 0.001)
    monkeypatch.setattr(recovery, "WATCH_S", 0.005)


@contextlib.asynccontextmanager
async def running(*engines, sources=("main",), slots=8):
    """A recovering engine whose builds return ``engines`` one after the other, and the calls it made."""
    built = []
    waiting = list(engines)

    def build(source, slots):
        built.append((source, slots))
        engine = waiting.pop(0)
        engine.source, engine.slots = source, slots
        return engine

    engine = RecoveringEngine(build, sources, slots)
    try:
        yield engine, built
    finally:
        await engine.close()


def scripted(**kwargs):
    return ScriptedEngine("", 0, **kwargs)


async def text(engine):
    return "".join([chunk.text async for chunk in engine.generate(PROMPT, SAMPLING)])


async def test_a_model_is_tried_three_times_and_then_the_fallback_is_loaded():
    broken = [scripted(load_error=ModelLoadError("main", "broken")) for _ in range(3)]
    async with running(*broken, scripted(), sources=("main", "spare")) as (engine, built):
        info = await engine.load()

        assert [source for source, _ in built] == ["main", "main", "main", "spare"]
        assert info.source == engine.info.source == "spare"
        assert await text(engine) == "012"


async def test_when_the_fallback_fails_too_the_last_reason_is_told():
    broken = [scripted(load_error=ModelLoadError("x", f"reason {n}")) for n in range(6)]
    async with running(*broken, sources=("main", "spare")) as (engine, built):
        with pytest.raises(ModelLoadError, match="reason 5"):
            await engine.load()

        assert len(built) == 6
        assert engine.health().state == "starting"


async def test_out_of_memory_while_loading_halves_the_slots():
    failing = scripted(load_error=ResourceInsufficientError("no memory"))
    async with running(failing, scripted()) as (engine, built):
        info = await engine.load()

        assert built == [("main", 8), ("main", 4)]
        assert info.slots == 4


async def test_a_request_that_has_sent_nothing_is_answered_by_the_next_engine():
    async with running(scripted(die_after=0), scripted()) as (engine, _):
        await engine.load()

        assert await text(engine) == "012"
        assert engine.health().restarts == 1


async def test_a_request_that_has_sent_tokens_is_not_sent_again():
    second = scripted()
    async with running(scripted(die_after=1), second) as (engine, _):
        await engine.load()
        received = []
        with pytest.raises(EngineError):
            async for chunk in engine.generate(PROMPT, SAMPLING):
                received.append(chunk.text)

        assert received == ["0"]
        assert second.prompts == []


async def test_a_request_is_given_up_after_three_engines_died_under_it():
    deadly = [scripted(die_after=0) for _ in range(3)]
    async with running(*deadly, scripted(), scripted()) as (engine, _):
        await engine.load()
        with pytest.raises(EngineUnavailableError):
            await text(engine)
        while engine.health().state != "ready":
            await asyncio.sleep(0.01)

        assert await text(engine) == "012"


async def test_scores_are_computed_again_by_the_next_engine():
    async with running(scripted(die_after=0), scripted()) as (engine, _):
        await engine.load()

        assert await engine.score([PROMPT], [1, 2]) == [[-1.0, -1.0]]


async def test_death_for_memory_halves_the_slots_each_time_down_to_one():
    dying = [scripted(die_after=0) for _ in range(2)]
    for engine in dying:
        engine.out_of_memory = True
    async with running(*dying, scripted(), slots=2) as (engine, built):
        await engine.load()

        assert await text(engine) == "012"
        assert [slots for _, slots in built] == [2, 1, 1]
        assert engine.health().slots == 1


async def test_the_fallback_reads_prompts_with_its_own_tokenizer():
    first, spare = scripted(die_after=0), scripted()
    broken = [scripted(load_error=ModelLoadError("main", "gone")) for _ in range(3)]
    async with running(first, *broken, spare, sources=("main", "spare")) as (engine, _):
        await engine.load()

        assert await text(engine) == "012"
        assert spare.prompts == ["spare:ab"]


async def test_while_the_engine_is_rebuilt_health_says_so():
    release = asyncio.Event()
    second = scripted()
    load = second.load

    async def slow_load():
        await release.wait()
        return await load()

    second.load = slow_load
    async with running(scripted(die_after=0), second) as (engine, _):
        await engine.load()
        request = asyncio.create_task(text(engine))
        while engine.health().state in ("ready", "dead"):
            await asyncio.sleep(0.005)

        assert engine.health().state == "starting"
        assert "died" in engine.health().reason
        release.set()
        assert await request == "012"


async def test_closing_ends_requests_that_wait_for_a_new_engine():
    second = scripted()
    second.load = lambda: asyncio.sleep(60)
    async with running(scripted(die_after=0), second) as (engine, _):
        await engine.load()
        request = asyncio.create_task(text(engine))
        await asyncio.sleep(0.05)
        await engine.close()
        with pytest.raises(EngineUnavailableError):
            await asyncio.wait_for(request, 2)


async def test_leaving_a_stream_closes_the_engines_iterator():
    inner = scripted()
    left = []
    generate = inner.generate

    async def watched(prompt, sampling):
        try:
            async for chunk in generate(prompt, sampling):
                yield chunk
        finally:
            left.append(prompt.text)

    inner.generate = watched
    async with running(inner) as (engine, _):
        await engine.load()
        stream = engine.generate(PROMPT, SAMPLING)
        await anext(stream)
        await stream.aclose()

        assert left == ["ab"]


async def test_an_engine_that_refuses_once_and_stays_ready_is_asked_again():
    inner = scripted()
    refusals = [EngineUnavailableError("busy for a moment")]
    generate = inner.generate

    async def moody(prompt, sampling):
        if refusals:
            raise refusals.pop()
        async for chunk in generate(prompt, sampling):
            yield chunk

    inner.generate = moody
    async with running(inner) as (engine, built):
        await engine.load()

        assert await asyncio.wait_for(text(engine), 2) == "012"
        assert len(built) == 1
