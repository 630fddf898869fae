"""Streams as the standard allows them, cut anywhere by the network."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.sse import EventReader


def read(*parts: bytes) -> list[tuple[float, bytes, bytes]]:
    reader = EventReader()
    for at, part in enumerate(parts):
        reader.feed(part, float(at))
    reader.close(float(len(parts)))
    return [(event.at, event.type, event.data) for event in reader.events]


@pytest.mark.parametrize(
    ("stream", "data"),
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data:a\n\ndata:  b\n\n", [b"a", b" b"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b": ping\n\ndata: a\n: more\n\n", [b"a"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data: a\n\ndata: [DONE]", [b"a", b"[DONE]"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"id: 1\nretry: 5\ndata: a\n\nnonsense\n\n", [b"a"]),
        (b"data\n\n", [b""]),
        (b"\n\n\n", []),
    ],
)
def test_a_stream_is_read_as_the_standard_says(stream, data):
    assert [found for _, _, found in read(stream)] == data


def test_the_type_of_an_event_lasts_for_that_event():
    assert [kind for _, kind, _ in read(b"event: error\ndata: a\n\ndata: b\n\n")] == [b"error", b"message"]


def test_an_event_is_stamped_when_its_data_was_whole():
    """The empty line that ends it may come much later, with the next event."""
    assert [at for at, _, _ in read(b"data: a\n", b"", b"\ndata: b", b"\n\n")] == [0.0, 3.0]


@given(st.data(), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_it_does_not_matter_where_the_network_cuts(data, end):
    lines = [
        b"data: {}".replace(b"{}", "你好".encode()),
        b"",
        b": c",
        b"event: x",
        b"data: 1",
        b"data: 2",
        b"",
        b"data:[DONE]",
    ]
    stream = end.join(lines) + end + end
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    parts = [stream[i:j] for i, j in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

    assert [found[1:] for found in read(*parts)] == [
        (b"message", "你好".encode()),
        (b"x", b"1\n2"),
        (b"message", b"[DONE]"),
    ]
