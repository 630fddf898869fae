"""The real engine process on the embedded model."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import pytest_asyncio

from model_server import tokenizer
from model_server.engine import Message, Sampling
from model_server.engines import openvino
from model_server.engines.openvino import OpenVINOEngine
from model_server.errors import EngineError, EngineUnavailableError, ModelLoadError, TaskNotSupportedError
from model_server.recovery import RecoveringEngine

MODEL = Path(__file__).parents[3] / "models" / "complaints-tiny"
CALL = "客户说上个月话费多扣了五十块钱,要求查清楚并且退款。"
GREEDY = Sampling(max_tokens=12, ignore_eos=True, logprobs=True)

pytestmark = pytest.mark.asyncio(loop_scope="module")


def build(path=MODEL, **changes):
    settings = {
        "model": "tiny",
        "path": path,
        "threads": 1,
        "slots": 8,
        "kv_blocks": 128,
        "kv_cache_bits": 8,
        "context_tokens": 1024,
        "batch_tokens": 256,
        "prefix_caching": True,
        "scoring": True,
    }
    return OpenVINOEngine(**(settings | changes))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine():
    engine = build()
    await engine.load()
    yield engine
    await engine.close()


@pytest_asyncio.fixture(loop_scope="module")
async def mortal():
    """An engine of its own, for tests that kill it."""
    engine = build()
    await engine.load()
    yield engine
    await engine.close()


async def collect(engine, text, sampling=GREEDY):
    return [chunk async for chunk in engine.generate(engine.prompt(text), sampling)]


async def until(condition, timeout_s=10):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


async def test_the_pieces_of_a_stream_are_the_text_of_its_tokens(engine):
    chunks = await collect(engine, CALL)
    ids = [token for chunk in chunks for token in chunk.token_ids]

    assert "".join(chunk.text for chunk in chunks) == engine._tokenizer.decode(ids)
    assert sum(chunk.tokens for chunk in chunks) == len(ids) == 12
    assert [chunk.finish_reason for chunk in chunks][-1] == "length"
    assert chunks[-1].prompt_tokens == engine.prompt(CALL).tokens


async def test_streams_computed_together_are_what_each_is_alone(engine):
    texts = [f"{number} {CALL}" for number in range(8)]
    alone = [await collect(engine, text) for text in texts]
    together = await asyncio.gather(*(collect(engine, text) for text in texts))

    def words(chunks):
        return "".join(chunk.text for chunk in chunks)

    assert list(map(words, together)) == list(map(words, alone))


async def test_both_compiled_forms_give_the_same_probability(engine):
    """The pipeline's own log-probability of the token it chose is the oracle for the scoring form."""
    prompt = engine.prompt([Message("user", CALL)])
    chunks = [chunk async for chunk in engine.generate(prompt, Sampling(max_tokens=1, ignore_eos=True, logprobs=True))]
    ((token,), (expected,)) = chunks[0].token_ids, chunks[0].logprobs
    ((scored,),) = await engine.score([prompt], [token])

    assert scored == pytest.approx(expected, abs=0.02)


async def test_scores_do_not_depend_on_what_is_scored_beside_them(engine):
    instruction = "请判断下面这通电话属于哪一类投诉。" * 12
    prompts = [engine.prompt(instruction + f"第{number}通:{CALL}" * (1 + number % 3)) for number in range(12)]
    fresh = build(prefix_caching=False)
    await fresh.load()
    alone = [(await fresh.score([prompt], [5, 6, 7]))[0] for prompt in reversed(prompts)][::-1]
    await fresh.close()
    together = await engine.score(prompts, [5, 6, 7])

    for scores, other in zip(together, alone, strict=True):
        assert scores == pytest.approx(other, abs=0.02)


async def test_another_instruction_in_between_does_not_spoil_the_prefix(engine):
    first = [engine.prompt("甲" * 100 + CALL), engine.prompt("甲" * 100 + "别的事")]
    other = [engine.prompt("乙" * 100 + CALL), engine.prompt("短")]
    before = await engine.score(first, [5, 6])
    await engine.score(other, [5, 6])
    await engine.score(other[1:], [5, 6])
    after = await engine.score(first, [5, 6])

    assert before[0] == pytest.approx(after[0], abs=1e-3)
    assert before[1] == pytest.approx(after[1], abs=1e-3)


async def test_leaving_a_stream_stops_its_computation(engine):
    stream = engine.generate(engine.prompt(CALL), Sampling(max_tokens=900, ignore_eos=True))
    await anext(stream)
    assert engine.health().running == 1
    await stream.aclose()

    await until(lambda: engine.health().running == 0)
    assert engine.health().waiting == 0


async def test_a_stop_text_ends_the_stream_before_it(engine):
    chunks = await collect(engine, CALL)
    full = "".join(chunk.text for chunk in chunks)
    stop = full[3:5]
    stopped = await collect(engine, CALL, Sampling(max_tokens=12, ignore_eos=True, stop=(stop,)))

    assert "".join(chunk.text for chunk in stopped) == full[: full.index(stop)]
    assert stopped[-1].finish_reason == "stop"
    await until(lambda: engine.health().running == 0)


async def test_a_seed_makes_sampling_repeatable_and_another_seed_changes_it(engine):
    async def sampled(seed):
        chunks = await collect(engine, CALL, Sampling(max_tokens=24, ignore_eos=True, temperature=1.5, seed=seed))
        return "".join(chunk.text for chunk in chunks)

    assert len({await sampled(seed) for seed in range(4)}) > 1


async def test_without_the_scoring_form_labels_cannot_be_scored():
    engine = build(scoring=False)
    await engine.load()
    with pytest.raises(TaskNotSupportedError):
        await engine.score([engine.prompt(CALL)], [5])
    await engine.close()


async def test_a_killed_process_is_noticed_at_once(mortal):
    begun = mortal.generate(mortal.prompt(CALL), Sampling(max_tokens=900, ignore_eos=True))
    await anext(begun)
    os.kill(mortal.health().pid, signal.SIGKILL)

    with pytest.raises(EngineError, match="SIGKILL"):
        async for _ in begun:
            pass
    assert mortal.health().state == "dead"
    with pytest.raises(EngineUnavailableError):
        await collect(mortal, CALL)


async def test_a_stopped_process_counts_as_stalled(mortal, monkeypatch):
    monkeypatch.setattr(openvino, "STALL_FLOOR_S", 2.0)
    os.kill(mortal.health().pid, signal.SIGSTOP)

    await until(lambda: mortal.health().state == "stalled")
    assert "no step" in mortal.health().reason


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
async def test_requests_that_sent_nothing_survive_the_loss_of_the_process(fault, monkeypatch):
    monkeypatch.setattr(openvino, "STALL_FLOOR_S", 2.0)
    engine = RecoveringEngine(lambda source, slots: build(Path(source), slots=slots), [str(MODEL)], 2)
    await engine.load()
    expected = "".join(chunk.text for chunk in await collect(engine, CALL))
    pid = engine.health().pid
    os.kill(pid, signal.SIGSTOP)  # nothing is answered before the fault
    requests = [asyncio.create_task(collect(engine, CALL)) for _ in range(4)]
    scores = asyncio.create_task(engine.score([engine.prompt(CALL)], [5]))
    await asyncio.sleep(0.1)
    os.kill(pid, fault)

    answers = await asyncio.wait_for(asyncio.gather(*requests), 60)
    assert ["".join(chunk.text for chunk in chunks) for chunks in answers] == [expected] * 4
    assert len(await scores) == 1
    assert engine.health().restarts == 1
    assert engine.health().pid != pid
    await engine.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_damaged_model_is_refused_with_the_librarys_reason(tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(MODEL, copy)
    (copy / "openvino_model.xml").write_text("<net>")
    with pytest.raises(ModelLoadError, match=r"openvino_model\.xml|xml"):
        await build(copy).load()


async def test_closing_ends_the_process_and_running_streams():
    engine = build()
    await engine.load()
    stream = engine.generate(engine.prompt(CALL), Sampling(max_tokens=900, ignore_eos=True))
    await anext(stream)
    pid = engine.health().pid
    await engine.close()
    await engine.close()

    with pytest.raises(EngineError):
        async for _ in stream:
            pass
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_gguf_file_loads_as_it_is_and_reads_text_as_its_model_directory_does(tmp_path):
    tools = Path(__file__).parents[2] / "tools"
    subprocess.run([sys.executable, tools / "tiny_qwen3.py", tmp_path / "tiny"], check=True)
    gguf = tmp_path / "tiny.gguf"
    subprocess.run([sys.executable, "-m", "training.gguf_model", tmp_path / "tiny", gguf, "f16"], check=True)
    engine = build(gguf, scoring=False)
    await engine.load()
    text = "the 你好<|im_end|> 123 don't"
    chunks = await collect(engine, text)

    assert list(engine.prompt(text).token_ids) == tokenizer.load(tmp_path / "tiny").encode(text)
    assert sum(chunk.tokens for chunk in chunks) == 12
    assert "\ufffd" not in "".join(chunk.text for chunk in chunks)
    await engine.close()


@pytest.mark.parametrize(
    ("pieces", "stops", "sent"),
    [
        (["ab", "cd"], ["x"], "abcd"),
        (["ab", "cd", "ef"], ["de"], "abc"),
        (["a", "b", "c"], ["abc"], ""),
        (["a", "b", "d"], ["abc"], "abd"),
        (["xyz", "zy"], ["zy", "zz"], "xy"),
    ],
)
async def test_stop_texts_are_found_across_pieces(pieces, stops, sent):
    stop_text = tokenizer.StopText(stops)
    out = ""
    for index, piece in enumerate(pieces):
        text, stopped = stop_text.push(piece, last=index == len(pieces) - 1)
        out += text
        if stopped:
            break

    assert out == sent
