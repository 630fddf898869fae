"""The Ollama engine: against recorded answers, and (marker ollama) against a real Ollama with a tiny Qwen3."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import httpx2
import psutil
import pytest

from model_server import tracing
from model_server.cache import cache_dir
from model_server.engine import Message, Sampling
from model_server.engines.ollama import OllamaEngine
from model_server.engines.transformers import TransformersEngine
from model_server.errors import (
    EngineError,
    EngineUnavailableError,
    InvalidRequestError,
    ModelLoadError,
    OverloadedError,
    TaskNotSupportedError,
)
from model_server.recovery import RecoveringEngine

TOOLS = Path(__file__).parents[2] / "tools"
CACHE = cache_dir()

# What Ollama 0.11.4 answered (abridged); test_the_fake_speaks_like_the_real_one compares the shapes.
TAGS = {
    "models": [
        {
            "name": "tiny:latest",
            "model": "tiny:latest",
            "modified_at": "2026-11-23T09:57:04Z",
            "size": 535338,
            "digest": "961b76e22fcaf0bf6816e83c8152bf8d12082ef94272ff8ec2ef4bd7dc6e2165",
            "details": {"format": "gguf", "family": "qwen3", "parameter_size": "132K", "quantization_level": "Q4_0"},
        }
    ]
}
SHOW = {"details": {}, "model_info": {"general.architecture": "qwen3", "qwen3.context_length": 2048}}
PIECE = {"model": "tiny", "created_at": "2026-11-23T09:57:06Z", "response": "n", "done": False}
LAST = {
    "model": "tiny",
    "created_at": "2026-11-23T09:57:06Z",
    "response": "",
    "done": True,
    "done_reason": "length",
    "total_duration": 628211518,
    "load_duration": 259389571,
    "prompt_eval_count": 12,
    "prompt_eval_duration": 46092718,
    "eval_count": 24,
    "eval_duration": 322226285,
}


def ndjson(*documents):
    return b"".join(json.dumps(document, ensure_ascii=False).encode() + b"\n" for document in documents)


class FakeOllama:
    """Answers ``/api/generate`` with the given replies in turn, the last one again and again."""

    def __init__(self, *replies):
        self.replies, self.requests, self.traces = list(replies), [], []

    async def __call__(self, request):
        path, body = request.url.path, json.loads(request.content or b"{}")
        if path != "/api/generate" or body["prompt"] in ("", "a"):
            answers = {"/api/tags": TAGS, "/api/show": SHOW, "/api/version": {"version": "0.11.4"}}
            return httpx2.Response(200, json=answers.get(path, LAST))
        self.requests.append(body)
        self.traces.append(request.headers.get("traceparent"))
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, Exception):
            raise reply
        return reply if isinstance(reply, httpx2.Response) else httpx2.Response(200, content=reply)


def engine_on(fake, **settings):
    defaults = {"model": "qwen3", "source": "tiny", "backoff_s": 0.001}
    return OllamaEngine(transport=httpx2.MockTransport(fake), **(defaults | settings))


@asynccontextmanager
async def loaded(fake, **settings):
    engine = engine_on(fake, **settings)
    await engine.load()
    yield engine
    await engine.close()


async def collect(engine, text="hello", **sampling):
    chunks = engine.generate(engine.prompt(text), Sampling(**({"max_tokens": 24} | sampling)))
    return [chunk async for chunk in chunks]


async def test_pieces_become_chunks_and_the_last_one_settles_the_count():
    async with loaded(FakeOllama(ndjson(PIECE, PIECE | {"response": "i"}, LAST))) as engine:
        chunks = await collect(engine)

    assert "".join(chunk.text for chunk in chunks) == "ni"
    assert [chunk.finish_reason for chunk in chunks] == [None, None, "length"]
    assert sum(chunk.tokens for chunk in chunks) == 24
    assert chunks[-1].prompt_tokens == 12


async def test_every_sampling_value_is_sent_because_ollama_has_defaults_of_its_own():
    fake = FakeOllama(ndjson(LAST))

    async with loaded(fake, context_tokens=512) as engine:
        await collect(engine, seed=7, temperature=0.5, stop=("x",))

    assert fake.requests[0]["options"] == {
        "num_ctx": 512,
        "num_predict": 24,
        "temperature": 0.5,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
        "seed": 7,
        "stop": ["x"],
    }


async def test_ollama_is_told_of_the_trace_that_the_request_belongs_to():
    caller = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    fake = FakeOllama(ndjson(LAST))
    async with loaded(fake) as engine:
        tracing.carry(tracing.from_headers({"traceparent": caller}))
        await collect(engine)
        tracing.carry(None)
        await collect(engine)

    assert fake.traces == [caller, None]


async def test_a_next_line_character_inside_an_answer_does_not_cut_it():
    """U+0085 and U+2028 may stand unescaped in JSON and end a line for str.splitlines."""
    text = "a\u0085b\u2028c"

    async with loaded(FakeOllama(ndjson(PIECE | {"response": text}, LAST))) as engine:
        assert "".join(chunk.text for chunk in await collect(engine)) == text


async def test_an_unreachable_ollama_is_tried_five_times_and_then_unavailable():
    fake = FakeOllama(httpx2.ConnectError("connection refused"))

    async with loaded(fake) as engine:
        with pytest.raises(EngineUnavailableError, match="connection refused, 5 tries"):
            await collect(engine)
        assert engine.health().state == "dead", "recovery replaces it and waits for Ollama to answer again"

    assert len(fake.requests) == 5


async def test_a_silent_ollama_is_not_asked_again():
    fake = FakeOllama(httpx2.ReadTimeout("silence"))
    async with loaded(fake) as engine:
        with pytest.raises(EngineUnavailableError, match="no answer within"):
            await collect(engine)

    assert len(fake.requests) == 1


async def test_a_full_queue_is_overload_and_not_the_end_of_the_engine():
    async with loaded(FakeOllama(httpx2.Response(503, json={"error": "server busy"}))) as engine:
        with pytest.raises(OverloadedError):
            await collect(engine)
        assert engine.health().state == "ready"


@pytest.mark.parametrize(
    "trouble",
    [
        httpx2.ConnectError("refused"),
        httpx2.Response(503, json={"error": "server busy"}),
        ndjson({"error": "model runner has unexpectedly stopped"}),
    ],
    ids=["refused", "busy", "error line"],
)
async def test_trouble_before_the_first_token_is_tried_again(trouble):
    fake = FakeOllama(trouble, ndjson(PIECE, LAST))

    async with loaded(fake) as engine:
        chunks = await collect(engine)

    assert len(fake.requests) == 2
    assert chunks[0].text == "n"


async def test_an_error_line_after_a_token_ends_the_stream_and_is_not_tried_again():
    fake = FakeOllama(ndjson(PIECE, {"error": "an error was encountered while running the model"}))

    async with loaded(fake) as engine:
        with pytest.raises(EngineError, match="while running the model"):
            await collect(engine)

    assert len(fake.requests) == 1


async def test_an_answer_that_ends_without_done_was_cut_by_the_repeat_limit():
    async with loaded(FakeOllama(ndjson(PIECE, PIECE))) as engine:
        chunks = await collect(engine)

    assert chunks[-1].finish_reason == "length"
    assert sum(chunk.tokens for chunk in chunks) == 2


async def test_an_unknown_model_is_refused_with_what_is_there_and_how_to_get_it():
    engine = engine_on(FakeOllama(b""), source="qwen3:0.6b")

    with pytest.raises(ModelLoadError, match=r"there: tiny:latest; run 'ollama pull qwen3:0.6b'"):
        await engine.load()
    await engine.close()


async def test_a_missing_ollama_is_a_load_error_that_names_the_command():
    async def refuse(request):
        raise httpx2.ConnectError("connection refused")

    with pytest.raises(ModelLoadError, match="ollama serve"):
        await engine_on(refuse).load()


async def test_load_tells_what_came_up():
    engine = engine_on(FakeOllama(b""), context_tokens=4096, slots=3)

    info = await engine.load()
    await engine.close()

    assert (info.engine, info.model, info.source, info.slots) == ("ollama", "qwen3", "tiny", 3)
    assert info.context_tokens == 2048, "the model was trained for fewer than were asked for"
    assert info.weight_bits == 4
    assert info.weights_bytes == 535338
    assert info.tasks == {"generate"}


async def test_what_ollama_cannot_do_is_refused_before_anything_is_sent():
    fake = FakeOllama(ndjson(LAST))

    async with loaded(fake) as engine:
        with pytest.raises(TaskNotSupportedError):
            await engine.score([engine.prompt("a")], [1])
        with pytest.raises(TaskNotSupportedError):
            await collect(engine, logprobs=True)
        with pytest.raises(InvalidRequestError):
            await collect(engine, ignore_eos=True)

    assert fake.requests == []


async def test_pull_reports_progress_and_turns_an_error_line_into_a_load_error():
    lines = ndjson({"status": "pulling manifest"}, {"status": "pulling", "completed": 5, "total": 9}, {"error": "gone"})
    engine = OllamaEngine(
        model="m",
        source="m",
        transport=httpx2.MockTransport(lambda request: httpx2.Response(200, content=lines)),
    )
    steps = []

    with pytest.raises(ModelLoadError, match="gone"):
        async for step in engine.pull("m"):
            steps.append((step.status, step.completed_bytes, step.total_bytes))

    assert steps == [("pulling manifest", 0, 0), ("pulling", 5, 9)]


# -- a real Ollama -----------------------------------------------------------------------------------------------


class RealOllama:
    def __init__(self, binary, home):
        self.binary, self.home, self.process = binary, home, None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.host = f"127.0.0.1:{probe.getsockname()[1]}"
        self.url = f"http://{self.host}"
        self.environ = os.environ | {
            "HOME": str(home),
            "OLLAMA_HOST": self.host,
            "OLLAMA_MODELS": str(home / "models"),
            "OLLAMA_NUM_PARALLEL": "1",
            "OLLAMA_MAX_LOADED_MODELS": "1",
        }

    def start(self):
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.binary, "serve"], env=self.environ, stdout=log, stderr=log, start_new_session=True
            )
        for _ in range(300):
            try:
                with urllib.request.urlopen(f"{self.url}/api/version", timeout=5):
                    return self
            except OSError:
                time.sleep(0.1)
        raise TimeoutError((self.home / "log").read_text()[-2000:])

    def runners(self):
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill(self):
        """The server and its runners, as an OOM kill of the unit would."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def create(self, name, modelfile):
        (self.home / "Modelfile").write_text(modelfile)
        command = [self.binary, "create", name, "-f", str(self.home / "Modelfile")]
        subprocess.run(command, env=self.environ, check=True, capture_output=True)

    def post(self, path, body):
        request = urllib.request.Request(f"{self.url}{path}", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=120) as answer:
            return [json.loads(line) for line in answer]


@pytest.fixture(scope="module")
def ollama(tmp_path_factory):
    binary = shutil.which("ollama") or shutil.which("ollama", path=CACHE / "bin")
    home = tmp_path_factory.mktemp("ollama")
    subprocess.run([sys.executable, TOOLS / "tiny_qwen3.py", home / "tiny"], check=True)
    subprocess.run([sys.executable, "-m", "training.gguf_model", home / "tiny", home / "tiny.gguf", "f32"], check=True)
    real = RealOllama(binary, home).start()
    try:
        real.create("tiny", f"FROM {home}/tiny.gguf")
        template = "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
        thinking_off = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
        real.create("chatty", f'FROM {home}/tiny.gguf\nTEMPLATE """{template}{thinking_off}"""')
        yield real
    finally:
        real.kill()


@pytest.fixture
async def engine(ollama):
    engine = OllamaEngine(model="qwen3", source="tiny", url=ollama.url, context_tokens=2048, poll_s=0.3)
    await engine.load()
    yield engine
    await engine.close()


@pytest.mark.ollama
def test_the_fake_speaks_like_the_real_one(ollama):
    tags = json.load(urllib.request.urlopen(f"{ollama.url}/api/tags", timeout=10))
    real_model = next(model for model in tags["models"] if model["name"] == "tiny:latest")
    assert TAGS["models"][0].keys() <= real_model.keys()
    assert TAGS["models"][0]["details"].keys() <= real_model["details"].keys()

    [shown] = ollama.post("/api/show", {"model": "tiny"})
    assert shown["model_info"]["qwen3.context_length"] == SHOW["model_info"]["qwen3.context_length"]

    real = ollama.post(
        "/api/generate", {"model": "tiny", "prompt": "hello", "raw": True, "options": {"num_predict": 3}}
    )
    assert real[0].keys() == PIECE.keys()
    assert real[-1].keys() == LAST.keys()
    assert {key: type(value) for key, value in real[-1].items()} == {key: type(value) for key, value in LAST.items()}


@pytest.mark.ollama
async def test_a_stream_says_what_the_plain_answer_says(ollama, engine):
    [plain] = ollama.post(
        "/api/generate",
        {
            "model": "tiny",
            "prompt": "hello the 你好",
            "raw": True,
            "stream": False,
            "options": {"temperature": 0, "num_predict": 20, "num_ctx": 2048, "repeat_penalty": 1.0},
        },
    )

    chunks = await collect(engine, "hello the 你好", max_tokens=20)

    assert "".join(chunk.text for chunk in chunks) == plain["response"]
    assert sum(chunk.tokens for chunk in chunks) == plain["eval_count"] == 20
    assert chunks[-1].prompt_tokens == plain["prompt_eval_count"]
    assert chunks[-1].finish_reason == "length"


@pytest.mark.ollama
async def test_models_and_information_come_from_the_server(engine):
    assert {model.name for model in await engine.models()} >= {"tiny:latest", "chatty:latest"}
    assert engine.health().state == "ready"


@pytest.mark.ollama
async def test_a_chat_reads_the_same_through_ollamas_template_and_ours(ollama, engine):
    turns = [Message("user", "hi 你好")]
    chatty = OllamaEngine(model="m", source="chatty", url=ollama.url, context_tokens=2048)
    ours = OllamaEngine(model="m", source="chatty", url=ollama.url, context_tokens=2048, raw_chat=True)
    await chatty.load()

    through_template = await collect(chatty, turns)
    await ours.load()
    through_text = await collect(ours, turns)

    assert [chunk.text for chunk in through_template] == [chunk.text for chunk in through_text]
    assert through_template[-1].prompt_tokens == through_text[-1].prompt_tokens
    assert through_text[-1].prompt_tokens <= engine.prompt(turns).tokens, "admission reserves by this estimate"
    await chatty.close()
    await ours.close()


@pytest.mark.ollama
async def test_a_seed_repeats_and_a_stop_string_ends(engine):
    first, second, other = [
        "".join(chunk.text for chunk in await collect(engine, temperature=1.0, seed=seed)) for seed in (1, 1, 2)
    ]
    assert first == second != other

    stop = first[4:6]
    chunks = await collect(engine, temperature=1.0, seed=1, stop=(stop,))
    assert "".join(chunk.text for chunk in chunks) == first[: first.index(stop)]
    assert chunks[-1].finish_reason == "stop"


@pytest.mark.ollama
async def test_closing_the_stream_stops_the_computation(ollama, engine):
    """2000 tokens are seconds of work; after the client left, the runner must fall idle at once."""
    async with aclosing(engine.generate(engine.prompt("hello"), Sampling(2000, temperature=1.0, seed=3))) as chunks:
        for _ in range(5):
            await anext(chunks)
        assert engine.health().running == 1
    assert engine.health().running == 0

    def busy_s():
        return sum(sum(runner.cpu_times()[:2]) for runner in ollama.runners())

    # Waits for one idle moment. Without the cancellation the answer alone keeps it busy for the whole wait;
    # the fastest machine seen made 400 tokens/s with this model.
    deadline = time.monotonic() + 2
    while True:
        before = busy_s()
        await asyncio.sleep(0.5)
        if busy_s() - before < 0.1:
            break
        assert time.monotonic() < deadline, "still computing 2 s after the client left"


@pytest.mark.ollama
@pytest.mark.training
async def test_greedy_text_is_that_of_the_reference_engine(ollama, engine):
    """The same float32 weights, through our GGUF writer and Ollama's kernels on one side and PyTorch on the other."""
    reference = TransformersEngine(model="tiny", path=ollama.home / "tiny")
    await reference.load()

    for text in ("hello the world", "请解释一下人工智能的基本概念。"):
        chunks = await collect(engine, text, max_tokens=24)
        assert "".join(chunk.text for chunk in chunks) == "".join(
            chunk.text for chunk in await collect(reference, text, max_tokens=24)
        )
        assert chunks[-1].prompt_tokens == reference.prompt(text).tokens

    await reference.close()


@pytest.mark.ollama
async def test_an_unknown_model_on_a_real_server(ollama):
    engine = OllamaEngine(model="m", source="qwen3:4b", url=ollama.url)
    with pytest.raises(ModelLoadError, match=r"tiny:latest.*ollama pull qwen3:4b"):
        await engine.load()
    await engine.close()


@pytest.mark.ollama
async def test_a_pull_that_cannot_reach_its_registry_is_a_load_error(engine):
    with pytest.raises(ModelLoadError, match="cannot pull"):
        [step async for step in engine.pull("127.0.0.1:9/library/none:latest")]


@pytest.mark.ollama
async def test_a_runner_killed_in_the_middle_ends_one_stream_and_no_other(ollama, engine):
    with pytest.raises(EngineError):
        async with aclosing(engine.generate(engine.prompt("hello"), Sampling(2000, temperature=1.0))) as chunks:
            await anext(chunks)
            for runner in ollama.runners():
                runner.kill()
            async for _ in chunks:
                pass

    assert (await collect(engine))[-1].finish_reason == "length"


@pytest.mark.ollama
async def test_a_server_killed_in_the_middle_is_used_again_when_it_is_back(ollama):
    """With recovery around the engine, as the server runs it."""
    engine = RecoveringEngine(
        lambda source, slots: OllamaEngine(
            model="qwen3", source=source, url=ollama.url, slots=slots, context_tokens=2048, poll_s=0.3
        ),
        ["tiny"],
        slots=1,
    )
    await engine.load()
    with pytest.raises(EngineError):
        async with aclosing(engine.generate(engine.prompt("hello"), Sampling(2000, temperature=1.0))) as chunks:
            await anext(chunks)
            ollama.kill()
            async for _ in chunks:
                pass
    while engine.health().state == "ready":
        await asyncio.sleep(0.05)
    assert "no Ollama answers" in engine.health().reason

    waiting = asyncio.create_task(collect(engine))
    await asyncio.sleep(0.5)
    assert not waiting.done()
    await asyncio.to_thread(ollama.start)

    assert (await waiting)[-1].finish_reason == "length"
    assert engine.health().restarts == 1
    await engine.close()
