"""The reference engine, against transformers' own ``generate`` and log-probabilities in another process."""

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import aclosing
from pathlib import Path

import pytest
import pytest_asyncio

from model_server.cache import cache_dir
from model_server.engine import Message, Sampling
from model_server.engines.transformers import TransformersEngine
from model_server.errors import (
    ConfigurationError,
    ContextTooLongError,
    EngineError,
    ModelLoadError,
)
from model_server.recovery import RecoveringEngine

TOOLS = Path(__file__).parents[2] / "tools"
CACHE = cache_dir()
TEXT = "hello the 你好"
LABELS = [110, 105, 79, 5, 261]
SAMPLED = {"temperature": 1.3, "top_k": 12, "top_p": 0.8}

# Everything that our child computes by hand, computed by the library.
ORACLE = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
path, text, labels, sampled = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(path)
ids = tokenizer(text, return_tensors="pt").input_ids
out = model.generate(ids, do_sample=False, max_new_tokens=40, output_logits=True, return_dict_in_generate=True)
greedy = out.sequences[0, ids.shape[1]:]
chosen = [float(row[0].log_softmax(-1)[token]) for row, token in zip(out.logits, greedy)]
logits = model(ids).logits[0, -1:]
warped = LogitsProcessorList([TemperatureLogitsWarper(sampled["temperature"]), TopKLogitsWarper(sampled["top_k"]),
                              TopPLogitsWarper(sampled["top_p"])])(ids, logits)[0].softmax(-1)
turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "hi 你好"}]
chat = tokenizer.apply_chat_template(turns, add_generation_prompt=True, enable_thinking=False, return_dict=True)
print(json.dumps({
    "ids": ids[0].tolist(), "greedy": greedy.tolist(), "text": tokenizer.decode(greedy), "chosen": chosen,
    "labels": logits[0].log_softmax(-1)[labels].tolist(), "chat": chat["input_ids"],
    "sampled": {str(token): float(p) for token, p in enumerate(warped) if p > 0},
}))
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    subprocess.run([sys.executable, TOOLS / "tiny_qwen3.py", directory], check=True)
    return directory


@pytest.fixture(scope="module")
def oracle(tiny):
    command = [CACHE / "venvs/training/bin/python", "-c", ORACLE, tiny, TEXT, json.dumps(LABELS), json.dumps(SAMPLED)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(answer.stdout.splitlines()[-1])


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_engine(tiny):
    engine = TransformersEngine(model="tiny", path=tiny, context_tokens=1024)
    await engine.load()
    yield engine
    await engine.close()


@pytest.fixture
def engine(shared_engine):
    """For tests that leave it as it was: a start takes 7 seconds of imports."""
    return shared_engine


async def collect(engine, text=TEXT, **sampling):
    chunks = engine.generate(engine.prompt(text), Sampling(**({"max_tokens": 40} | sampling)))
    return [chunk async for chunk in chunks]


def ids_of(chunks):
    return [token for chunk in chunks for token in chunk.token_ids]


def text_of(chunks):
    return "".join(chunk.text for chunk in chunks)


async def test_a_missing_environment_is_named_with_the_command_that_makes_it(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("QWEN3_STACK_CACHE", str(tmp_path))

    with pytest.raises(ConfigurationError, match="make training-env"):
        await TransformersEngine(model="tiny", path=tiny).load()


@pytest.mark.training
async def test_greedy_tokens_text_and_log_probabilities_are_those_of_generate(engine, oracle):
    chunks = await collect(engine, logprobs=True)

    assert list(engine.prompt(TEXT).token_ids) == oracle["ids"]
    assert ids_of(chunks) == oracle["greedy"]
    assert text_of(chunks) == oracle["text"]
    assert [value for chunk in chunks for value in chunk.logprobs] == pytest.approx(oracle["chosen"], abs=1e-4)
    assert (chunks[-1].finish_reason, chunks[-1].prompt_tokens) == ("length", len(oracle["ids"]))


@pytest.mark.training
async def test_without_the_kv_cache_the_tokens_are_the_same(tiny, oracle):
    engine = TransformersEngine(model="tiny", path=tiny, kv_cache=False)
    info = await engine.load()

    assert ids_of(await collect(engine)) == oracle["greedy"]
    assert info.detail["kv_cache"] == "false"
    await engine.close()


@pytest.mark.training
async def test_a_chat_is_read_as_the_library_renders_it(engine, oracle):
    turns = [Message("system", "s"), Message("user", "hi 你好")]

    assert list(engine.prompt(turns).token_ids) == oracle["chat"]


@pytest.mark.training
async def test_label_scores_are_log_probabilities_over_the_whole_vocabulary(engine, oracle):
    scores = await engine.score([engine.prompt(TEXT), engine.prompt("hi")], LABELS)

    assert scores[0] == pytest.approx(oracle["labels"], abs=1e-4)
    [everything] = await engine.score([engine.prompt("hi")], range(268))
    assert math.fsum(map(math.exp, everything)) == pytest.approx(1, abs=1e-5)


@pytest.mark.training
async def test_sampled_tokens_follow_the_librarys_distribution(engine, oracle):
    """The set of possible tokens exactly; each frequency within five standard deviations of 400 seeded draws."""
    draws = 400

    async def draw(seed):
        return ids_of(await collect(engine, max_tokens=1, seed=seed, ignore_eos=True, **SAMPLED))[0]

    seen = Counter([await draw(seed) for seed in range(draws)])

    expected = {int(token): probability for token, probability in oracle["sampled"].items()}
    assert len(expected) > 2, "a choice between few tokens would show nothing"
    assert seen.keys() <= expected.keys()
    for token, probability in expected.items():
        spread = math.sqrt(draws * probability * (1 - probability))
        assert abs(seen[token] - draws * probability) <= 5 * spread, token


@pytest.mark.training
async def test_the_end_of_text_token_ends_it_unless_ignored(engine):
    end = 267  # <|im_end|>, the last of 268 tokens
    hot = {"temperature": 2.0, "seed": 5, "max_tokens": 900}

    through = ids_of(await collect(engine, ignore_eos=True, **hot))
    ended = await collect(engine, **hot)

    assert len(through) == 900
    assert ids_of(ended) == through[: through.index(end)]
    assert ended[-1].finish_reason == "stop"


@pytest.mark.training
async def test_a_stop_string_over_two_tokens_ends_the_text_before_it(engine, oracle):
    stop = oracle["text"][6:8]

    chunks = await collect(engine, stop=(stop,))

    assert text_of(chunks) == oracle["text"][: oracle["text"].index(stop)]
    assert chunks[-1].finish_reason == "stop"


@pytest.mark.training
async def test_streams_share_the_model_and_do_not_disturb_each_other(engine, oracle):
    first, second, scores = await asyncio.gather(
        collect(engine), collect(engine, "hi", temperature=1.0, seed=3), engine.score([engine.prompt(TEXT)], LABELS)
    )

    assert ids_of(first) == oracle["greedy"]
    assert ids_of(second) == ids_of(await collect(engine, "hi", temperature=1.0, seed=3))
    assert scores[0] == pytest.approx(oracle["labels"], abs=1e-4)


@pytest.mark.training
async def test_closing_the_stream_stops_the_computation(engine):
    async with aclosing(engine.generate(engine.prompt(TEXT), Sampling(1000, ignore_eos=True))) as chunks:
        for _ in range(3):
            await anext(chunks)
        assert engine.health().running == 1
    await engine.score([engine.prompt("a")], [0])  # answered after the cancellation was read

    before = engine.health().progress
    await asyncio.sleep(0.3)
    assert engine.health().progress == before


@pytest.mark.training
async def test_a_request_beyond_the_context_is_refused_with_the_numbers(engine):
    with pytest.raises(ContextTooLongError, match=r"max_tokens is 1020; together they may be at most 1024"):
        await collect(engine, "hello", max_tokens=1020)


@pytest.mark.training
async def test_a_request_that_fails_leaves_the_engine_alive(engine):
    with pytest.raises(EngineError, match=r"IndexError|RuntimeError"):
        await engine.score([engine.prompt("a")], [10**6])

    assert len(ids_of(await collect(engine))) == 40


@pytest.mark.training
async def test_a_killed_process_is_replaced_and_the_stream_it_had_begun_is_not_repeated(tiny):
    engine = RecoveringEngine(
        lambda source, slots: TransformersEngine(model="tiny", path=Path(source), slots=slots), [str(tiny)], slots=2
    )
    await engine.load()
    with pytest.raises(EngineError, match="code -9"):
        async with aclosing(engine.generate(engine.prompt(TEXT), Sampling(1000, ignore_eos=True))) as chunks:
            await anext(chunks)
            os.kill(engine.health().pid, signal.SIGKILL)
            async for _ in chunks:
                pass

    assert len(ids_of(await collect(engine))) == 40, "the recovery waited for a new process"
    assert engine.health().restarts == 1
    await engine.close()


@pytest.mark.training
async def test_a_damaged_model_is_a_load_error(tiny, tmp_path):
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"not weights")

    with pytest.raises(ModelLoadError, match=r"SafetensorError|header"):
        await TransformersEngine(model="tiny", path=tmp_path).load()
