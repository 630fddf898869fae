from __future__ import annotations

from pathlib import Path

import pytest

from model_server import tokenizer
from model_server.engine import Message
from model_server.errors import InvalidRequestError, ModelLoadError

MODEL = Path(__file__).parents[2] / "models" / "complaints-tiny"
TEXTS = ["客户说上个月话费多扣了五十块钱,要求退款。", "emoji 😀👨‍👩‍👧 and ascii", "𠮷野家 龘", "a\n\n  b\tc", ""]


@pytest.fixture(scope="module")
def tiny():
    return tokenizer.load(MODEL)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 13])
def test_text_that_arrives_in_groups_of_tokens_is_the_text(tiny, text, size):
    ids = tiny.encode(text)
    stream = tokenizer.TextStream(tiny)
    pieces = [stream.push(ids[at : at + size], last=at + size >= len(ids)) for at in range(0, len(ids), size)]

    assert "".join(pieces) == text
    assert not any(tokenizer.REPLACEMENT in piece for piece in pieces)


def test_bytes_that_never_become_a_character_come_out_at_the_end(tiny):
    ids = tiny.encode("好")
    assert len(tiny.encode("龘")) > 1  # this vocabulary spells it in bytes
    broken = tiny.encode("龘")[:-1]
    stream = tokenizer.TextStream(tiny)

    assert stream.push(ids) == "好"
    assert stream.push(broken) == ""
    assert stream.push([], last=True) == tokenizer.REPLACEMENT * stream_length(tiny, broken)


def stream_length(tiny, ids):
    return len(tiny.decode(ids))


def test_a_chat_ends_with_the_assistants_turn_and_thinking_off(tiny):
    prompt = tiny.chat([Message("system", "你是助手"), Message("user", "你好")])

    assert prompt.startswith("<|im_start|>system\n你是助手<|im_end|>\n<|im_start|>user\n你好<|im_end|>\n")
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_a_template_that_refuses_is_the_requests_fault(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((MODEL / "tokenizer.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('only one turn') }}")
    with pytest.raises(InvalidRequestError, match="only one turn"):
        tokenizer.load(tmp_path).chat([Message("user", "你好")])


def test_a_template_cannot_reach_out_of_its_sandbox(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((MODEL / "tokenizer.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(InvalidRequestError, match="unsafe"):
        tokenizer.load(tmp_path).chat([Message("user", "你好")])


def test_a_damaged_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelLoadError, match="tokenizer"):
        tokenizer.load(tmp_path)
