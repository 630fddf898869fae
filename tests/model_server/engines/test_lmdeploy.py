"""The LMDeploy engine: against a fake at the wire, and (marker lmdeploy) against LMDeploy 0.18's real server.

The real one runs with its engine replaced by a small loop on the CPU (``cpu_lmdeploy.py``): LMDeploy has no CPU path.
"""

import asyncio
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import httpx2
import psutil
import pytest

from model_server.cache import cache_dir
from model_server.engine import Message, Sampling
from model_server.engines.lmdeploy import LAUNCHER, LMDeployEngine
from model_server.errors import (
    ConfigurationError,
    ContextTooLongError,
    EngineError,
    EngineUnavailableError,
    InvalidRequestError,
    ModelLoadError,
)

HERE = Path(__file__).parent
TOOLS = HERE.parents[1] / "tools"
CACHE = cache_dir()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    subprocess.run([sys.executable, TOOLS / "tiny_qwen3.py", directory], check=True)
    return directory


# -- a fake at the wire ------------------------------------------------------------------------------------------

# What LMDeploy 0.18.0 answered; test_the_fake_speaks_like_the_real_one compares the shapes.
PIECE = {
    "id": "chatcmpl-x",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "tiny",
    "choices": [{"index": 0, "delta": {"role": "assistant", "content": "n"}, "output_ids": [110]}],
    "usage": None,
}
LAST = PIECE | {
    "choices": [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": "length", "output_ids": []}
    ]
}
USAGE = {key: PIECE[key] for key in ("id", "object", "created", "model")} | {
    "choices": [],
    "usage": {
        "prompt_tokens": 5,
        "total_tokens": 7,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 0},
    },
}
STREAM_ERROR = {"error": {"message": "The inference engine is unavailable.", "type": "server_error", "code": 503}}
ONLY_PYTORCH = "input logprobs are supported only by the PyTorch hybrid engine."
PYTORCH = "logprob_start_len requires max_tokens=0."


def piece(text):
    return PIECE | {"choices": [{"index": 0, "delta": {"role": "assistant", "content": text}, "output_ids": [1]}]}


def sse(*events):
    lines = [f"data: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events]
    return "".join([*lines, "data: [DONE]\n\n"]).encode()


class FakeLMDeploy:
    def __init__(self, *, backend_answer=ONLY_PYTORCH, stream=b""):
        self.status, self.code, self.backend_answer, self.stream = "healthy", 200, backend_answer, stream
        self.requests = []

    async def __call__(self, request):
        body = json.loads(request.content or b"{}")
        match request.url.path:
            case "/health":
                return httpx2.Response(self.code, json={"status": self.status, "message": "as planted"})
            case "/v1/models":
                return httpx2.Response(200, json={"data": [{"id": "tiny"}]})
            case "/generate" if "logprob_start_len" in body:
                return httpx2.Response(400, json={"message": self.backend_answer, "code": 400})
            case "/generate":
                rows = [[[-0.5, 7], [-1.5, 8], [-3.0, 9]]]
                return httpx2.Response(200, json={"text": "", "meta_info": {"output_top_logprobs": rows}})
            case _:
                self.requests.append(body)
                return (
                    self.stream
                    if isinstance(self.stream, httpx2.Response)
                    else httpx2.Response(200, content=self.stream)
                )


def engine_on(fake, tiny, **settings):
    defaults = {"model": "tiny", "path": tiny, "url": "http://gpu:23333", "context_tokens": 512}
    defaults |= {"load_timeout_s": 5, "backoff_s": 0.001, "poll_s": 0.01}
    return LMDeployEngine(transport=httpx2.MockTransport(fake), **(defaults | settings))


@asynccontextmanager
async def loaded(fake, tiny, **settings):
    engine = engine_on(fake, tiny, **settings)
    await engine.load()
    yield engine
    await engine.close()


async def collect(engine, text="hello", **sampling):
    chunks = engine.generate(engine.prompt(text), Sampling(**({"max_tokens": 24} | sampling)))
    return [chunk async for chunk in chunks]


async def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        await asyncio.sleep(0.05)


async def test_the_last_chunk_carries_the_reason_and_the_prompts_length(tiny):
    async with loaded(FakeLMDeploy(stream=sse(piece("a"), piece("b"), LAST, USAGE)), tiny) as engine:
        chunks = await collect(engine)

    assert [(chunk.text, chunk.finish_reason) for chunk in chunks] == [("a", None), ("b", None), ("", "length")]
    assert chunks[-1].prompt_tokens == 5


async def test_a_backend_that_lmdeploy_fell_back_to_is_refused(tiny):
    engine = engine_on(FakeLMDeploy(backend_answer=PYTORCH), tiny, backend="turbomind")

    with pytest.raises(ModelLoadError, match="must be turbomind, but LMDeploy came up with pytorch"):
        await engine.load()


async def test_a_backend_that_answers_as_no_known_version_does_is_refused(tiny):
    with pytest.raises(ModelLoadError, match=r"written for LMDeploy 0\.18\.0"):
        await engine_on(FakeLMDeploy(backend_answer="something new"), tiny).load()


async def test_asleep_is_not_ready_although_health_answers_200(tiny):
    fake = FakeLMDeploy()
    fake.status = "sleeping"

    with pytest.raises(ModelLoadError, match=r"not healthy after 0\.3 s .*sleeping"):
        await engine_on(fake, tiny, load_timeout_s=0.3).load()


async def test_another_model_than_configured_is_refused_with_what_is_served(tiny):
    with pytest.raises(ModelLoadError, match="serves tiny, not 'qwen3'"):
        await engine_on(FakeLMDeploy(), tiny, model="qwen3").load()


async def test_unhealthy_twice_in_a_row_is_a_stall_and_once_is_not(tiny):
    fake = FakeLMDeploy()
    async with loaded(fake, tiny) as engine:
        fake.status = "unhealthy"
        await until(lambda: engine.health().state == "stalled")
        assert engine.health().reason == "LMDeploy is unhealthy: as planted"
        with pytest.raises(EngineUnavailableError):
            await collect(engine)


async def test_an_error_inside_a_200_before_any_token_may_be_retried_elsewhere(tiny):
    fake = FakeLMDeploy(stream=sse(STREAM_ERROR))
    async with loaded(fake, tiny) as engine:
        with pytest.raises(EngineUnavailableError, match="unavailable"):
            await collect(engine)
        assert engine.health().state == "dead", "recovery waits for a replacement"

    assert len(fake.requests) == 5


async def test_an_error_inside_a_200_after_a_token_ends_the_stream(tiny):
    fake = FakeLMDeploy(stream=sse(piece("a"), STREAM_ERROR))
    async with loaded(fake, tiny) as engine:
        with pytest.raises(EngineError, match="unavailable"):
            await collect(engine)

    assert len(fake.requests) == 1


async def test_a_stream_that_just_ends_is_an_error(tiny):
    async with loaded(FakeLMDeploy(stream=sse(piece("a"))), tiny) as engine:
        with pytest.raises(EngineError, match="without its last part"):
            await collect(engine)


async def test_a_stop_string_may_span_tokens(tiny):
    async with loaded(FakeLMDeploy(stream=sse(*map(piece, ["on", "e tw", "o thr"]), LAST, USAGE)), tiny) as engine:
        chunks = await collect(engine, stop=("two",))

    assert "".join(chunk.text for chunk in chunks) == "one "
    assert chunks[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("Input length (600) must be smaller than the model context length (512).", ContextTooLongError),
        ("The temperature 3.0 must be in [0, 2]", InvalidRequestError),
    ],
)
async def test_a_refusal_is_the_clients_error_and_the_engine_lives(tiny, message, error):
    refusal = httpx2.Response(400, json={"message": message, "type": "invalid_request_error", "code": 400})
    async with loaded(FakeLMDeploy(stream=refusal), tiny) as engine:
        with pytest.raises(error):
            await collect(engine)
        assert engine.health().state == "ready"


async def test_greedy_is_sent_as_lmdeploy_decodes_greedily_itself(tiny):
    fake = FakeLMDeploy(stream=sse(LAST, USAGE))
    async with loaded(fake, tiny) as engine:
        await collect(engine, temperature=0.0)

    assert {key: fake.requests[0][key] for key in ("temperature", "top_k", "top_p")} == {
        "temperature": 1.0,
        "top_k": 1,
        "top_p": 1.0,
    }


async def test_a_label_outside_the_returned_ones_stands_at_the_smallest_and_is_counted(tiny):
    async with loaded(FakeLMDeploy(), tiny) as engine:
        assert await engine.score([engine.prompt("a")], [8, 100]) == [[-1.5, -3.0]]
        assert engine.floored_labels == 1


def test_an_impossible_cache_precision_is_refused(tiny):
    with pytest.raises(ConfigurationError, match="4, 8 and 16"):
        LMDeployEngine(model="m", path=tiny, kv_cache_bits=2)


def test_the_launcher_hides_the_key_and_ends_with_its_parent(tmp_path):
    """Any key: one that begins with a dash once made LMDeploy's option parser print it and give up."""
    (tmp_path / "lmdeploy").mkdir()
    (tmp_path / "lmdeploy" / "cli.py").write_text(
        "import sys, time\ndef run():\n    print(sys.argv, flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, LAUNCHER, "serve", "api_server"],
        env=os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    process.stdin.write(b"-a-key\n")
    process.stdin.flush()

    seen = process.stdout.readline().decode()
    command = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    process.communicate()  # closes its standard input

    assert seen.strip() == "['lmdeploy', 'serve', 'api_server', '--api-keys=-a-key']"
    assert b"a-key" not in command
    assert process.returncode == -signal.SIGTERM


# -- the real server ---------------------------------------------------------------------------------------------


def real_engine(tiny, **settings):
    # "turbomind" would fall back here as it does wherever there is no libcuda.
    defaults = {"model": "tiny", "path": tiny, "backend": "pytorch", "slots": 4, "context_tokens": 512}
    defaults |= {"prefix_caching": False, "launcher": HERE / "cpu_lmdeploy.py", "poll_s": 0.2, "load_timeout_s": 200}
    return LMDeployEngine(**(defaults | settings))


async def start(tiny, **settings):
    """LMDeploy's PyTorch start loses a race now and then on a loaded host (EOFError): recovery tries three times."""
    for attempt in range(3):
        engine = real_engine(tiny, **settings)
        try:
            await engine.load()
        except ModelLoadError:
            if attempt == 2:
                raise
        else:
            return engine
    raise AssertionError("the loop returns or raises")


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(autouse=True)
def shim_settings(monkeypatch, faults):
    monkeypatch.setenv("CPU_ENGINE_FAULTS", str(faults))
    monkeypatch.setenv("CPU_ENGINE_STEP_S", "0.02")


@pytest.fixture(scope="module")
def labels():
    return [110, 105, 79, 5, 261]


@pytest.fixture(scope="module")
def reference(tiny, labels):
    """What transformers computes from the same weights, in a process of its own and without any of our code."""
    script = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
plain = tokenizer("hello the 你好", return_tensors="pt").input_ids
greedy = model.generate(plain, do_sample=False, max_new_tokens=24)[0, plain.shape[1]:]
row = model(plain).logits[0, -1].log_softmax(-1)
logprobs = row[json.loads(sys.argv[2])]
turns = [{"role": "user", "content": "hi 你好"}]
chat = tokenizer.apply_chat_template(turns, add_generation_prompt=True, enable_thinking=False, return_dict=True)
print(json.dumps({"plain": plain[0].tolist(), "greedy": greedy.tolist(), "text": tokenizer.decode(greedy),
                  "best": float(row.max()), "logprobs": logprobs.tolist(), "chat": chat["input_ids"]}))
"""
    python = CACHE / "venvs" / "lmdeploy" / "bin" / "python"
    command = [python, "-c", script, tiny, json.dumps(labels)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(answer.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def shared_server(tiny, faults, tmp_path_factory):
    """One server for the tests that leave it as it was: a child process that outlives one event loop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CPU_ENGINE_FAULTS", str(faults))
        patch.setenv("CPU_ENGINE_STEP_S", "0.02")
        key = "a-key-that-nobody-may-read"
        log = tmp_path_factory.mktemp("lmdeploy") / "log"
        engine = real_engine(tiny, stall_s=4.0)
        words = engine._arguments(port := free_port())
        environ = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "LMDEPLOY_HEALTH_PROBE_TIMEOUT": "1",
            "LMDEPLOY_HEALTH_POLL_INTERVAL": "1.25",
        }
        with log.open("wb") as out:
            process = subprocess.Popen(
                [CACHE / "venvs" / "lmdeploy" / "bin" / "python", HERE / "cpu_lmdeploy.py", *words],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                env=environ,
                start_new_session=True,
            )
        process.stdin.write(f"{key}\n".encode())
        process.stdin.flush()
        yield {"url": f"http://127.0.0.1:{port}", "api_key": key, "pid": process.pid}
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdin.close()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
async def engine(tiny, shared_server):
    engine = real_engine(tiny, url=shared_server["url"], api_key=shared_server["api_key"], stall_s=4.0)
    await engine.load()
    yield engine
    await engine.close()


@pytest.mark.lmdeploy
async def test_the_fake_speaks_like_the_real_one(shared_server, engine, reference):
    headers = {"Authorization": f"Bearer {shared_server['api_key']}"}
    async with httpx2.AsyncClient(base_url=shared_server["url"], headers=headers, timeout=60) as client:
        body = engine._chat(engine.prompt("hello"), Sampling(3))
        answer = await client.post("/v1/chat/completions", json=body)
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        health = (await client.get("/health")).json()
        models = (await client.get("/v1/models")).json()

    assert events[0].keys() == PIECE.keys()
    assert events[0]["choices"][0].keys() == PIECE["choices"][0].keys()
    assert events[0]["choices"][0]["delta"].keys() == PIECE["choices"][0]["delta"].keys()
    assert events[-2]["choices"][0].keys() == LAST["choices"][0].keys()
    assert events[-1].keys() == USAGE.keys()
    assert USAGE["usage"].keys() <= events[-1]["usage"].keys()
    assert health == {"status": "healthy", "message": "Engine is healthy."}
    assert models["data"][0]["id"] == "tiny"


@pytest.mark.lmdeploy
async def test_greedy_text_ids_and_counts_are_those_of_transformers(engine, reference):
    prompt = engine.prompt("hello the 你好")
    assert list(prompt.token_ids) == reference["plain"]

    chunks = await collect(engine, "hello the 你好", logprobs=True)

    assert [token for chunk in chunks for token in chunk.token_ids] == reference["greedy"]
    assert "".join(chunk.text for chunk in chunks) == reference["text"]
    assert sum(chunk.tokens for chunk in chunks) == 24
    assert chunks[-1].prompt_tokens == len(reference["plain"])
    assert chunks[0].logprobs == pytest.approx([reference["best"]], abs=1e-4)


@pytest.mark.lmdeploy
async def test_a_chat_is_read_as_the_models_template_writes_it(engine, reference):
    turns = [Message("user", "hi 你好")]
    assert list(engine.prompt(turns).token_ids) == reference["chat"]

    assert (await collect(engine, turns))[-1].prompt_tokens == len(reference["chat"])


@pytest.mark.lmdeploy
async def test_label_scores_are_the_log_probabilities_of_transformers(engine, reference, labels):
    [scores, _] = await engine.score([engine.prompt("hello the 你好"), engine.prompt("hi")], labels)

    assert scores == pytest.approx(reference["logprobs"], abs=1e-4)


@pytest.mark.lmdeploy
async def test_few_log_probabilities_floor_the_labels_beyond_them(tiny, shared_server, reference, labels):
    engine = real_engine(tiny, url=shared_server["url"], api_key=shared_server["api_key"], top_logprobs=20)
    await engine.load()

    [scores] = await engine.score([engine.prompt("hello the 你好")], labels)

    missing = [
        score
        for score, true in zip(scores, reference["logprobs"], strict=True)
        if not math.isclose(score, true, abs_tol=1e-4)
    ]
    assert len(missing) == engine.floored_labels > 0
    assert set(missing) == {min(scores)}
    await engine.close()


@pytest.mark.lmdeploy
async def test_a_seed_repeats(engine):
    texts = ["".join(chunk.text for chunk in await collect(engine, temperature=1.0, seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.lmdeploy
async def test_leaving_the_stream_stops_the_computation(shared_server, engine):
    headers = {"Authorization": f"Bearer {shared_server['api_key']}"}
    async with httpx2.AsyncClient(base_url=shared_server["url"], headers=headers) as client:

        async def generated():
            lines = (await client.get("/metrics/")).text.splitlines()
            [line] = [line for line in lines if line.startswith("lmdeploy:generation_tokens_total{")]
            return float(line.split()[-1])

        before = await generated()
        async with aclosing(engine.generate(engine.prompt("hello"), Sampling(480, ignore_eos=True))) as chunks:
            for _ in range(3):
                await anext(chunks)
            begun = await generated()
            await asyncio.sleep(1)
            assert await generated() > begun, "the counter moves while it computes"
        # It stands still once the request is gone; 480 tokens take 9.6 s at least.
        count = await generated()
        for _ in range(30):
            await asyncio.sleep(1)
            last, count = count, await generated()
            if count == last:
                break

    assert count - before < 240, "most of the 480 tokens were never computed"


@pytest.mark.lmdeploy
async def test_a_prompt_beyond_the_context_is_the_clients_error(engine):
    with pytest.raises(ContextTooLongError, match="at most 512"):
        await collect(engine, "x" * 600)
    assert engine.health().state == "ready"


@pytest.mark.lmdeploy
async def test_the_key_guards_the_server_and_shows_in_no_command_line(tiny, shared_server):
    with pytest.raises(ModelLoadError, match="Unauthorized"):
        await real_engine(tiny, url=shared_server["url"], api_key="wrong").load()

    lines = [Path(f"/proc/{pid}/cmdline") for pid in psutil.pids()]
    shown = b"".join(line.read_bytes() for line in lines if line.exists())
    assert b"cpu_lmdeploy.py" in shown
    assert shared_server["api_key"].encode() not in shown


@pytest.mark.lmdeploy
async def test_another_backend_than_configured_is_noticed_on_the_real_server(tiny, shared_server):
    engine = real_engine(tiny, url=shared_server["url"], api_key=shared_server["api_key"], backend="turbomind")
    with pytest.raises(ModelLoadError, match="came up with pytorch"):
        await engine.load()


@pytest.mark.lmdeploy
async def test_a_hung_engine_is_a_stall_while_the_api_process_answers(engine, faults):
    (faults / "HANG").touch()
    try:
        await until(lambda: engine.health().state == "stalled")
        assert "timed out" in engine.health().reason
    finally:
        (faults / "HANG").unlink()


@pytest.mark.lmdeploy
async def test_a_child_serves_and_finishes_its_streams_when_it_is_closed(tiny, monkeypatch):
    """With the engine in a process of its own, which a SIGTERM to the group would end first."""
    monkeypatch.setenv("CPU_ENGINE", "zmq")
    engine = await start(tiny)
    assert engine.health().pid is not None
    chunks = engine.generate(engine.prompt("hello"), Sampling(150, ignore_eos=True))
    texts = [await anext(chunks) for _ in range(3)]

    closing = asyncio.create_task(engine.close())
    texts += [chunk async for chunk in chunks]
    await closing

    assert sum(chunk.tokens for chunk in texts) == 150, "SIGTERM went to the main process alone: no stream was cut"
    assert texts[-1].finish_reason == "length"
    assert not psutil.pid_exists(engine.health().pid)


@pytest.mark.lmdeploy
async def test_an_engine_loop_that_died_inside_its_process_is_noticed(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("CPU_ENGINE_FAULTS", str(tmp_path))
    engine = await start(tiny, stall_s=4.0)
    with pytest.raises(EngineError):
        async with aclosing(engine.generate(engine.prompt("hello"), Sampling(480, ignore_eos=True))) as chunks:
            await anext(chunks)
            (tmp_path / "DEAD").touch()
            async for _ in chunks:
                pass
    await until(lambda: engine.health().state in ("stalled", "dead"))
    with pytest.raises(EngineUnavailableError):
        await collect(engine)
    began = time.monotonic()
    await engine.close()
    assert time.monotonic() - began < engine._drain_s, "nothing is left to wait for"


@pytest.mark.lmdeploy
async def test_an_engine_process_killed_behind_its_api_process_is_noticed(tiny, monkeypatch):
    """LMDeploy itself restarts nothing, and its API process lives on: systemd's Restart= would never fire."""
    monkeypatch.setenv("CPU_ENGINE", "zmq")
    engine = await start(tiny, stall_s=4.0)
    parent = psutil.Process(engine.health().pid)
    with pytest.raises(EngineError):
        async with aclosing(engine.generate(engine.prompt("hello"), Sampling(480, ignore_eos=True))) as chunks:
            await anext(chunks)
            for child in parent.children(recursive=True):
                if "spawn_main" in " ".join(child.cmdline()):
                    child.kill()
            async for _ in chunks:
                pass

    await until(lambda: engine.health().state in ("stalled", "dead"))

    assert parent.is_running(), "the API process outlived its engine"
    await engine.close()
    assert not parent.is_running()


@pytest.mark.lmdeploy
async def test_a_child_whose_parent_is_gone_ends_by_itself(tiny):
    """The kernel closes the pipe when the server is killed; the GPU must not stay taken."""
    engine = await start(tiny)
    engine._child.stdin.close()

    await until(lambda: engine.health().state == "dead")

    assert "ended with code -15" in engine.health().reason
    await engine.close()


@pytest.mark.lmdeploy
@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU")
async def test_without_a_gpu_the_load_error_names_the_cause(tiny):
    """LMDeploy as it is, without our engine for the CPU: it falls back from TurboMind, then finds no driver."""
    engine = LMDeployEngine(model="tiny", path=tiny, slots=4, context_tokens=512)

    with pytest.raises(ModelLoadError, match=r"code 1: .*Fallback to pytorch.*no NVIDIA driver"):
        await engine.load()
