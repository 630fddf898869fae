"""OpenAI's own client library against a real server."""

from __future__ import annotations

import asyncio
import math

import fake_engine
import openai
import pytest

from model_server.engine import Chunk
from model_server.errors import EngineError, EngineUnavailableError
from model_server.service import ready_together

ANSWER = fake_engine.ANSWER
HELLO = [{"role": "user", "content": "你好"}]


@pytest.fixture
async def client(serve):
    """A server and the library's client for it."""
    clients = []

    async def start(engine=None, *, key="none", **serving):
        served = await serve(engine, **serving)
        clients.append(openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0))
        return served, clients[-1]

    yield start
    for made in clients:
        await made.close()


async def test_a_chat_is_answered_whole(client):
    served, api = await client()

    answer = await api.chat.completions.create(model="qwen3-test", messages=HELLO, max_tokens=7)

    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == ANSWER[:7]
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (2, 7, 9)
    assert served.engine.samplings[0].temperature == 1.0


async def test_a_chat_is_streamed_with_usage_at_the_end(client):
    _, api = await client(fake_engine.FakeEngine(token_s=0.005))

    stream = await api.chat.completions.create(
        model="qwen3-test",
        messages=HELLO,
        max_tokens=7,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]

    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER[:7]
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 7
    assert len({chunk.id for chunk in chunks}) == 1


async def test_usage_is_streamed_only_when_asked_for(client):
    _, api = await client()

    stream = await api.chat.completions.create(model="qwen3-test", messages=HELLO, max_tokens=3, stream=True)

    assert [chunk.usage async for chunk in stream if chunk.usage] == []


async def test_a_completion_is_answered_and_streamed(client):
    served, api = await client()

    whole = await api.completions.create(model="qwen3-test", prompt="北京是", max_tokens=4)
    stream = await api.completions.create(model="qwen3-test", prompt=["北京是"], max_tokens=4, stream=True)

    assert whole.choices[0].text == ANSWER[:4]
    assert "".join([chunk.choices[0].text async for chunk in stream]) == ANSWER[:4]
    assert [prompt.messages for prompt in served.engine.prompts] == [(), ()]


async def test_settings_reach_the_engine(client):
    served, api = await client()

    await api.chat.completions.create(
        model="qwen3-test",
        messages=HELLO,
        max_tokens=1,
        max_completion_tokens=3,
        temperature=0.25,
        top_p=0.5,
        seed=7,
        stop=["。", "!"],
        extra_body={"top_k": 20, "ignore_eos": True},
    )

    [sampling] = served.engine.samplings
    assert sampling.max_tokens == 3
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.25, 0.5, 20)
    assert (sampling.seed, sampling.stop, sampling.ignore_eos) == (7, ("。", "!"), True)


async def test_without_a_limit_the_answer_ends_at_the_default_or_the_context(client):
    served, api = await client(fake_engine.FakeEngine(context_tokens=600))

    await api.chat.completions.create(model="qwen3-test", messages=HELLO)
    await api.chat.completions.create(model="qwen3-test", messages=[{"role": "user", "content": "长" * 500}])

    assert [sampling.max_tokens for sampling in served.engine.samplings] == [512, 100]


async def test_turns_of_all_forms_are_read(client):
    served, api = await client()
    turns = [
        {"role": "developer", "content": "简短"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "你"}, {"type": "text", "text": "好"}],
            "name": "a",
        },
        {"role": "assistant", "content": "您好"},
        {"role": "user", "content": "再见"},
    ]

    await api.chat.completions.create(model="qwen3-test", messages=turns, max_tokens=1)

    assert [(turn.role, turn.content) for turn in served.engine.prompts[0].messages] == [
        ("system", "简短"),
        ("user", "你好"),
        ("assistant", "您好"),
        ("user", "再见"),
    ]


async def test_logprobs_of_the_chosen_tokens(client):
    _, api = await client()

    chat = await api.chat.completions.create(model="qwen3-test", messages=HELLO, max_tokens=2, logprobs=True)
    text = await api.completions.create(model="qwen3-test", prompt="北京", max_tokens=2, logprobs=1)

    tokens = chat.choices[0].logprobs.content
    assert [token.token for token in tokens] == [ANSWER[0], ANSWER[1]]
    assert [token.logprob for token in tokens] == [pytest.approx(math.log(0.5))] * 2
    assert bytes(tokens[0].bytes).decode() == ANSWER[0]
    assert text.choices[0].logprobs.tokens == [ANSWER[0], ANSWER[1]]
    assert text.choices[0].logprobs.text_offset == [0, 1]


async def test_logprobs_that_the_engine_has_not_are_refused(client):
    _, api = await client(fake_engine.FakeEngine(tasks=["generate"]))

    with pytest.raises(openai.NotFoundError, match="logprobs is not available"):
        await api.chat.completions.create(model="qwen3-test", messages=HELLO, logprobs=True)


async def test_models_are_listed_and_found(client):
    _, api = await client()

    assert [card.id async for card in api.models.list()] == ["qwen3-test"]
    assert (await api.models.retrieve("qwen3-test")).id == "qwen3-test"
    with pytest.raises(openai.NotFoundError):
        await api.models.retrieve("org/other")


async def test_an_unknown_model_is_a_404_in_openais_shape(client):
    _, api = await client()

    with pytest.raises(openai.NotFoundError) as caught:
        await api.chat.completions.create(model="gpt-4o", messages=HELLO)

    assert caught.value.code == "model_not_found"
    assert caught.value.type == "invalid_request_error"
    assert "qwen3-test" in caught.value.message


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"n": 2}, "n"),
        ({"presence_penalty": 1.0}, "presence_penalty"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}}, "chat_template_kwargs"),
        ({"extra_body": {"max_tokenz": 3}}, "max_tokenz"),
    ],
)
async def test_what_is_not_supported_is_refused_by_name(client, setting, named):
    served, api = await client()

    with pytest.raises(openai.BadRequestError) as caught:
        await api.chat.completions.create(model="qwen3-test", messages=HELLO, **setting)

    assert caught.value.param.startswith(named)
    assert served.engine.prompts == []


async def test_a_prompt_beyond_the_context_says_so(client):
    _, api = await client(fake_engine.FakeEngine(context_tokens=100))

    with pytest.raises(openai.BadRequestError) as caught:
        await api.completions.create(model="qwen3-test", prompt="长" * 90, max_tokens=20)

    assert caught.value.code == "context_length_exceeded"
    assert "90" in caught.value.message


async def test_a_stream_that_breaks_ends_with_an_error_and_without_done(client, serve, events):
    served, api = await client(fake_engine.FakeEngine(fail_after=3))
    body = {"model": "qwen3-test", "messages": HELLO, "max_tokens": 9, "stream": True}

    answer = await served.ask("/v1/chat/completions", body)
    with pytest.raises(openai.APIError, match="the fake was told to"):
        async for _ in await api.chat.completions.create(**body):
            pass

    assert answer.status_code == 200
    told = events(answer.text)
    assert told[-1]["error"]["code"] == "engine_error"
    assert "[DONE]" not in told
    assert served.metric("qwen3_inference_requests_total", endpoint="chat_completions", status="500") == 2


@pytest.mark.parametrize(
    ("error", "status"), [(EngineUnavailableError("restarting"), 503), (EngineError("broke"), 500)]
)
async def test_what_fails_before_the_first_token_has_its_own_status(serve, error, status):
    served = await serve(fake_engine.FakeEngine(fail_before=error))

    answer = await served.ask("/v1/chat/completions", {"model": "qwen3-test", "messages": HELLO, "stream": True})

    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "server_error"


async def test_a_bug_in_the_middle_of_a_stream_is_an_error_event(serve, events):
    served = await serve()

    async def broken(prompt, sampling):
        yield Chunk("一")
        raise ZeroDivisionError

    served.engine.generate = broken
    answer = await served.ask("/v1/chat/completions", {"model": "qwen3-test", "messages": HELLO, "stream": True})

    assert events(answer.text)[-1]["error"]["message"] == "the engine failed: an error inside the server"


async def test_tokens_that_are_ready_together_come_together():
    async def chunks():
        yield Chunk("一")
        await asyncio.sleep(0.02)
        for text in "二三四":
            yield Chunk(text)
        await asyncio.sleep(0.02)
        yield Chunk("五", finish_reason="stop")

    groups = [["".join(chunk.text for chunk in group)] async for group in ready_together(chunks())]

    assert groups == [["一"], ["二三四"], ["五"]]


async def test_a_client_that_reads_slowly_does_not_hold_the_engine(serve, until):
    """The engine is free as soon as it has computed, however long its tokens take to be read."""
    served = await serve(fake_engine.FakeEngine(context_tokens=300_000), request_timeout_s=20, drain_s=30)
    body = (
        b'{"model": "qwen3-test", "messages": [{"role": "user", "content": "x"}], '
        b'"max_tokens": 60000, "stream": true, "logprobs": true}'
    )
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)

    _, writer = await served.send(head + body)
    await until(lambda: served.engine.progress == 60000 and served.engine.generating == 0, 20)

    assert served.engine.cancelled == []
    writer.close()
