"""Every dialect's stream means the same: the shapes are those of the servers' own documents and sources."""

from __future__ import annotations

import hashlib
import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.calls import Call
from benchmarks.config import Scenario
from benchmarks.dialects import APIS, AnswerError, read_body, read_stream, request_body
from benchmarks.records import Record
from benchmarks.sse import Event, LineReader


def record():
    return Record(run=0, arm="a", pair=0, phase="measure", number=0, user=0, call="c", scheduled_s=0.0)


def read(dialect, *chunks, types=None, count=None, keep_text=True):
    """``chunks`` as events, one second apart from 1 s on."""
    data = [chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode() for chunk in chunks]
    names = types or [b"message"] * len(data)
    events = [Event(float(at), text, name) for at, (text, name) in enumerate(zip(data, names, strict=True), 1)]
    found = record()
    read_stream(dialect, events, found, count, keep_text=keep_text)
    return found


def delta(content=None, finish=None, **more):
    return {"choices": [{"index": 0, "delta": {"content": content} | more, "finish_reason": finish}]}


DONE = b"[DONE]"
USAGE = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}}


def test_three_tokens_mean_the_same_in_every_dialect():
    streams = {
        "chat_stream": [delta("a"), delta("b"), delta("c"), delta(None, "stop"), USAGE, DONE],
        "completions_stream": [
            *({"choices": [{"index": 0, "text": text, "finish_reason": None}]} for text in "abc"),
            {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]},
            USAGE,
            DONE,
        ],
        "lmdeploy_stream": [
            *(
                {
                    "text": text,
                    "output_ids": [7],
                    "meta_info": {
                        "prompt_tokens": 5,
                        "completion_tokens": number,
                        "finish_reason": {"type": "stop"} if number == 3 else None,
                    },
                }
                for number, text in enumerate("abc", 1)
            ),
            DONE,
        ],
        "llamacpp_stream": [
            *({"index": 0, "content": text, "tokens": [7], "stop": False} for text in "abc"),
            {"content": "", "stop": True, "stop_type": "stop", "tokens_predicted": 3, "tokens_evaluated": 5},
        ],
        "ollama_stream": [
            *({"model": "m", "created_at": "x", "response": text, "done": False} for text in "abc"),
            {"response": "", "done": True, "done_reason": "stop", "prompt_eval_count": 5, "eval_count": 3},
        ],
        "ollama_chat_stream": [
            *({"message": {"role": "assistant", "content": text}, "done": False} for text in "abc"),
            {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"}
            | {"prompt_eval_count": 5, "eval_count": 3},
        ],
    }
    assert streams.keys() == {name for name, api in APIS.items() if api.delta is not None}
    for dialect, chunks in streams.items():
        found = read(dialect, *chunks)

        assert (found.first_token_s, found.first_content_s, found.last_token_s) == (1.0, 1.0, 3.0), dialect
        assert (found.prompt_tokens, found.output_tokens, found.token_source) == (5, 3, "server"), dialect
        assert (found.events, found.event_times_s, found.tokens_first_event) == (3, [1.0, 2.0, 3.0], 1.0), dialect
        assert (found.finish_reason, found.output_text, found.end_s) == ("stop", "abc", float(len(chunks))), dialect


@pytest.mark.parametrize(
    ("chunks", "content_at"),
    [
        ([delta(reasoning_content="hm"), delta("a"), DONE], 2.0),
        ([delta(reasoning="hm"), delta("a"), DONE], 2.0),
        ([delta("<think>"), delta("hm"), delta("</think>"), delta("\n\n"), delta("a"), DONE], 5.0),
        ([delta("<thi"), delta("nk>hm</thi"), delta("nk>a"), DONE], 3.0),
        ([delta("<think>hm</think>\n\na"), DONE], 1.0),
        ([delta("<think>\n\n</think>\n\n"), delta("a"), DONE], 2.0),
        ([delta("<think>only"), DONE], None),
        ([delta("a <think>"), DONE], 1.0),
    ],
)
def test_thinking_is_the_first_token_and_not_the_first_content(chunks, content_at):
    found = read("chat_stream", *chunks)

    assert (found.first_token_s, found.first_content_s) == (1.0, content_at)


def test_what_is_no_text_is_no_token():
    """A role, a null, an empty text, a prompt filter's result, a keep-alive object: the first token is none of them."""
    found = read(
        "chat_stream",
        {"choices": [], "prompt_filter_results": []},
        delta("", role="assistant"),
        delta(None),
        {"choices": [{"index": 0, "delta": {}}], "usage": None},
        {"choices": [{"index": 0, "delta": None, "text": None}]},
        b"",
        delta("a"),
        USAGE,
        DONE,
    )

    assert (found.first_token_s, found.events) == (7.0, 1)


def test_the_call_of_a_tool_is_made_of_tokens_too():
    calls = [{"index": 0, "function": {"name": "f", "arguments": ""}}], [{"index": 0, "function": {"arguments": "{}"}}]
    found = read("chat_stream", delta(None, tool_calls=calls[0]), delta(None, "tool_calls", tool_calls=calls[1]), DONE)

    assert (found.first_token_s, found.last_token_s, found.first_content_s) == (1.0, 2.0, None)
    assert found.finish_reason == "tool_calls"


def test_content_may_be_a_list_of_parts():
    found = read("chat_stream", delta([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), DONE)

    assert found.output_text == "ab"


@pytest.mark.parametrize(
    ("sizes", "events", "first"),
    [([1, 1, 1, 1], 4, 1.0), ([1, 4, 4], 3, 1.0), ([4, 4, 4], 3, 4.0), ([4, 1, 1], 3, 4.0), ([9], 1, 9.0)],
)
def test_the_tokens_of_the_first_event_follow_from_the_characters_where_nobody_counts(sizes, events, first):
    usage = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": sum(sizes)}}
    found = read("chat_stream", *(delta("字" * size) for size in sizes), usage, DONE)

    assert (found.events, found.tokens_first_event) == (events, pytest.approx(first))


def test_a_token_that_ended_the_answer_without_text_does_not_change_the_first_event():
    """As many servers count: 4 tokens, 3 of which have text of unequal length."""
    usage = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 4}}
    found = read("chat_stream", delta("a"), delta("long"), delta("b"), usage, DONE)

    assert found.tokens_first_event == 1.0


def test_usage_in_every_event_tells_the_first_events_tokens():
    chunks = [delta("ab") | {"usage": {"prompt_tokens": 5, "completion_tokens": 2}}]
    chunks += [delta("c") | {"usage": {"prompt_tokens": 5, "completion_tokens": 5}}]
    found = read("chat_stream", *chunks, DONE)

    assert (found.tokens_first_event, found.output_tokens) == (2.0, 5)


def test_a_tokenizer_counts_where_the_server_does_not():
    found = read("chat_stream", delta("ab"), delta("cde"), DONE, count=len)

    assert (found.output_tokens, found.token_source, found.tokens_first_event) == (5, "tokenizer", 2.0)


@pytest.mark.parametrize(
    ("chunks", "types"),
    [
        ([delta("a"), {"error": {"message": "broken", "code": 500}}], None),
        ([delta("a"), {"error": "broken"}], None),
        ([delta("a"), {"object": "error", "message": "broken", "code": 500}], None),
        ([delta("a"), {"message": "broken"}], [b"message", b"error"]),
        ([delta("a"), delta("broken", "error"), DONE], None),
        ([delta("a"), delta("", "abort"), DONE], None),
    ],
)
def test_an_error_inside_a_stream_is_an_error_event(chunks, types):
    with pytest.raises(AnswerError) as caught:
        read("chat_stream", *chunks, types=types)

    assert caught.value.kind == "error_event"


def test_ollamas_error_line_is_an_error_event():
    with pytest.raises(AnswerError, match="out of memory"):
        read("ollama_stream", {"response": "a", "done": False}, {"error": "out of memory"})


@pytest.mark.parametrize("dialect", [name for name, api in APIS.items() if api.delta is not None])
def test_no_end_mark_is_truncated_and_nothing_at_all_too(dialect):
    for chunks in ([], [delta("a") | {"text": "a", "content": "a", "response": "a", "done": False, "stop": False}]):
        with pytest.raises(AnswerError) as caught:
            read(dialect, *chunks)
        assert caught.value.kind == "truncated"


@pytest.mark.parametrize(
    "data", [b"<html>", b"[1]", b'"x"', b'{"choices": 5}', b'{"choices": [{"delta": {"content": 5}}]}']
)
def test_what_is_not_the_dialect_is_malformed(data):
    with pytest.raises(AnswerError) as caught:
        read("chat_stream", data, DONE)

    assert caught.value.kind == "malformed"


def test_not_a_number_among_log_probabilities_is_read():
    """Python's servers write NaN and Infinity, which are not JSON."""
    found = read("chat_stream", b'{"choices":[{"delta":{"content":"a"},"logprobs":{"x":NaN,"y":-Infinity}}]}', DONE)

    assert found.output_text == "a"


def test_an_end_mark_inside_a_text_ends_nothing():
    text = 'say "stop": true or "done":true or [DONE]'
    assert not APIS["llamacpp_stream"].ends(json.dumps({"content": text, "stop": False}).encode())
    assert not APIS["ollama_stream"].ends(json.dumps({"response": text, "done": False}).encode())
    assert not APIS["chat_stream"].ends(json.dumps(delta(text)).encode())
    assert APIS["llamacpp_stream"].ends(b'{"content":"","stop": true}')
    assert APIS["ollama_stream"].ends(b'{"done":true}')
    assert APIS["chat_stream"].ends(b" [DONE] ")


def test_answers_are_written_down_only_where_asked_and_are_recognised_anyway():
    kept, dropped = (read("chat_stream", delta("你好"), DONE, keep_text=keep) for keep in (True, False))

    assert (kept.output_text, dropped.output_text) == ("你好", None)
    assert kept.output_sha256 == dropped.output_sha256 == hashlib.sha256("你好".encode()).hexdigest()


def test_an_error_with_status_200_is_no_answer():
    with pytest.raises(AnswerError) as caught:
        read_body("chat", b'{"error": {"message": "no"}}', record())

    assert caught.value.kind == "error_event"


@pytest.mark.parametrize("dialect", APIS)
def test_what_is_asked_names_the_prompt_and_the_length(dialect):
    scenario = Scenario.model_validate({"texts": ["x"], "users": 1, "requests": 1, "dialect": dialect})
    body = json.loads(request_body(scenario, Call("c", "你好"), "m", 7))

    assert "你好" in json.dumps(body, ensure_ascii=False)
    assert dialect == "classify" or 7 in [*body.values(), *body.get("options", {}).values()]


@given(lines=st.lists(st.text(alphabet='ab{}"\\:é字 ', min_size=1), max_size=6), cuts=st.lists(st.integers(0, 60)))
@settings(max_examples=60)
def test_lines_are_the_same_wherever_the_network_cuts_them(lines, cuts):
    stream = "".join(line + "\n" for line in lines).encode()
    whole, cut = LineReader(), LineReader()
    whole.feed(stream, 0.0)
    at = sorted({0, len(stream), *(min(place, len(stream)) for place in cuts)})
    for begin, end in itertools.pairwise(at):
        cut.feed(stream[begin:end], 0.0)
    whole.close(0.0)
    cut.close(0.0)

    assert cut.events == whole.events
    assert [event.data for event in whole.events] == [line.encode() for line in lines if line.encode().strip()]
