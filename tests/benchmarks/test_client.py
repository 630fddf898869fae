"""The real client against a server that knows when it wrote each token, on the same clock."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from benchmarks.__main__ import main

TOKENS = 24
MODES = [
    "plain",
    "role_first",
    "comments",
    "nospace",
    "crlf",
    "several",
    "reasoning",
    "usage_each",
    "role_first+comments+nospace+crlf+several+reasoning",
]


@pytest.fixture(scope="module")
def stream(truth_server, client):
    """Ask for streams in one way; the records and, in the same order, what the server knows about each."""
    server = truth_server("ttft_ms=40", "tpot_ms=5", f"tokens={TOKENS}")

    def ask(mode, requests=4):
        before = len(server.log())
        records, said = client("chat_stream").run(server.url, model=mode, users=1, requests=requests)
        return records, said, server.log()[before:], client("chat_stream").origin

    return ask


@pytest.mark.parametrize("mode", MODES)
def test_times_and_tokens_are_the_servers_in_every_way_to_write_a_stream(stream, mode):
    records, _, log, origin = stream(mode)

    assert records["error"].isna().all()
    assert set(records["output_tokens"]) == {TOKENS}
    assert set(records["events"]) == {6 if "several" in mode else TOKENS}
    first = [at + origin - entry["written"][0] for at, entry in zip(records["first_token_s"], log, strict=True)]
    last = [at + origin - entry["written"][-1] for at, entry in zip(records["last_token_s"], log, strict=True)]
    # The clock is the same: nothing is read before it was written; a busy machine may add a little.
    assert min(first + last) > 0
    assert statistics.median(first) < 0.01
    assert statistics.median(last) < 0.01
    truth = statistics.median(entry["written"][0] - entry["arrived"] for entry in log)
    assert records["ttft_s"].median() == pytest.approx(truth, abs=0.02)


@pytest.mark.parametrize("mode", ["plain", "several", "usage_each+several", "reasoning"])
def test_time_per_token_does_not_depend_on_how_tokens_are_packed(stream, mode):
    """Dividing by N - 1 would be an eighth too low with four tokens per event (24 tokens)."""
    records, _, log, _ = stream(mode, requests=6)

    per_event = TOKENS / int(records["events"].iloc[0])
    spans = [(entry["written"][-1] - entry["written"][0]) / (TOKENS - per_event) for entry in log]
    assert records["tpot_s"].median() == pytest.approx(statistics.median(spans), rel=0.04)
    assert records["tpot_s"].median() == pytest.approx(0.005, rel=0.1)


def test_the_tokens_of_the_first_event_are_the_servers_count_or_follow_from_the_characters(stream):
    counted, *_ = stream("usage_each+several")
    uncounted, *_ = stream("several")
    unknown, *_ = stream("several+no_usage")

    assert set(counted["tokens_first_event"]) == {4}
    assert set(uncounted["tokens_first_event"]) == {4}
    assert unknown["tokens_first_event"].isna().all()


def test_reasoning_is_the_first_token_and_not_the_first_content(stream):
    records, _, log, _ = stream("reasoning")

    truth = statistics.median(entry["written"][TOKENS // 2] - entry["written"][0] for entry in log)
    assert (records["first_content_s"] - records["first_token_s"]).median() == pytest.approx(truth, abs=0.01)


def test_a_role_only_delta_is_a_first_byte_and_not_a_first_token(stream):
    records, *_ = stream("role_first")

    assert ((records["first_token_s"] - records["first_byte_s"]) > 0.02).all()


def test_every_record_says_when_it_was_due_sent_and_answered_in_that_order(stream):
    records, *_ = stream("plain", requests=8)

    order = ["scheduled_s", "sent_s", "first_byte_s", "first_token_s", "last_token_s", "end_s"]
    assert (records[order].diff(axis=1).iloc[:, 1:] >= 0).all(axis=None)
    assert sorted(records["number"]) == list(range(8))


@pytest.mark.parametrize(
    ("mode", "kind", "status"),
    [
        ("truncated", "truncated", 200),
        ("abrupt", "truncated", 200),
        ("error_event", "error_event", 200),
        ("stall", "timeout", 200),
        ("http500", "http_status", 500),
        ("http429", "http_status", 429),
        ("html", "malformed", 200),
        ("no_such_model", "http_status", 404),
    ],
)
def test_a_failure_has_its_class_and_no_latency(stream, mode, kind, status):
    records, said, *_ = stream(mode, requests=2)

    assert set(records["error"]) == {kind}
    assert set(records["status"]) == {status}
    assert said["failed"] == 2
    assert records["latency_s"].isna().all()
    assert records["ttft_s"].isna().all()


def test_a_client_goes_on_after_a_failure(stream):
    """A broken connection is not used again, and the user that met it sends its next request."""
    records, _, log, _ = stream("abrupt", requests=4)

    assert len(log) == len(records) == 4


def test_nobody_listening_is_a_connection_error(client):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]

    records, _ = client("classify").run(f"http://127.0.0.1:{port}", users=1, requests=1)

    assert records["error"].tolist() == ["connect"]
    assert records["status"].isna().all()


def test_a_server_that_hangs_up_without_an_answer_is_a_reset(client):
    with _answering(b"", keep=False) as port:
        records, _ = client("classify").run(f"http://127.0.0.1:{port}", users=1, requests=1)

    assert records["error"].tolist() == ["reset"]


def test_a_body_that_is_shorter_than_announced_is_truncated(client):
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    with _answering(answer, keep=False) as port:
        records, _ = client("classify").run(f"http://127.0.0.1:{port}", users=1, requests=1)

    assert records["error"].tolist() == ["truncated"]


def test_a_certificate_is_trusted_where_the_system_does_and_nowhere_else(client, tmp_path, monkeypatch, capsys):
    """Locust's own default would accept any, and its HTTP library knows public issuers alone."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    scenario = tmp_path / "s.yml"
    scenario.write_text("texts: [x]\nusers: 1\nrequests: 3\n", encoding="utf-8")
    body = b'{"category": "x", "confidence": 0.9, "probabilities": {"x": 0.9}, "needs_review": false}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with _answering(answer, keep=False, tls=context) as port:
        url = f"https://127.0.0.1:{port}"
        records, _ = client("classify").run(url, users=1, requests=1)
        code = main(["run", str(scenario), f"url={url}", f"out={tmp_path / 'no'}", "--quiet"])
        said = capsys.readouterr().err
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        trusted = main(["run", str(scenario), f"url={url}", f"out={tmp_path / 'yes'}", "--quiet"])

    assert records["error"].tolist() == ["connect"]
    assert "certificate" in records["error_detail"][0].lower()
    assert (code, trusted) == (4, 0)
    assert "its certificate is not trusted" in said


def test_a_server_may_live_below_a_path(client):
    seen: list[bytes] = []
    with _answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", keep=False, seen=seen) as port:
        client("classify").run(f"http://127.0.0.1:{port}/team/a/", users=1, requests=1)

    assert seen[0].startswith(b"POST /team/a/api/v1/classify HTTP/1.1\r\n")


def test_connections_are_used_again(client):
    """Each new connection would add its handshake to the time to first token."""
    body = b'{"category": "x", "confidence": 0.5}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    accepted: list[int] = []
    with _answering(answer, keep=True, accepted=accepted) as port:
        records, _ = client("classify").run(f"http://127.0.0.1:{port}", users=2, requests=10)

    assert records["error"].isna().all()
    assert len(accepted) == 2


def test_answers_in_one_piece_are_read(truth_server, client):
    server = truth_server("service_ms=1", "ttft_ms=5", "tpot_ms=1", "tokens=8")

    classified, _ = client("classify").run(server.url, users=1, requests=2)
    inferred, _ = client("inference").run(server.url, users=1, requests=2)
    chatted, _ = client("chat").run(server.url, model="plain", users=1, requests=2)

    assert set(classified["category"]) == {"网络故障"}
    assert set(classified["confidence"]) == {0.9}
    assert inferred["output_tokens"].isna().all()  # tokens_used counts the prompt too
    assert inferred["output_sha256"].nunique() == 1
    assert set(chatted["output_tokens"]) == {8}
    assert set(chatted["finish_reason"]) == {"stop"}
    assert chatted["ttft_s"].isna().all()


def test_a_closed_loop_never_has_more_requests_than_users(truth_server, client):
    server = truth_server("service_ms=30")

    records, said = client("classify").run(server.url, users=3, duration_s=1.0)

    moments = sorted([(at, 1) for at in records["sent_s"]] + [(at, -1) for at in records["end_s"]])
    running = [sum(step for _, step in moments[: n + 1]) for n in range(len(moments))]
    assert max(running) == 3 == said["peak_in_flight"]


def test_a_constant_rate_keeps_its_schedule_and_sends_everything(truth_server, client):
    server = truth_server("service_ms=5")

    records, _ = client("classify").run(server.url, rate_per_s=50, requests=60)

    due = records.sort_values("scheduled_s")["scheduled_s"]
    assert len(server.log()) == 60
    assert due.diff().dropna().to_list() == pytest.approx([0.02] * 59)
    assert records["late_s"].median() < 0.01


def test_a_constant_rate_shows_a_frozen_server_where_a_closed_loop_hides_it(truth_server, client):
    """
    Frozen for 1 s from 0.5 s on: of 40 requests a second, 40 meet the freeze and wait for 0.5 s on average. In a
    closed loop only the users' own requests do.
    """
    words = ("service_ms=2", "freeze_at_s=0.5", "freeze_s=1.0")

    open_loop, _ = client("classify").run(truth_server(*words).url, rate_per_s=40, duration_s=2.5)
    closed_loop, _ = client("classify").run(truth_server(*words).url, users=4, duration_s=2.5)

    slow = open_loop["latency_scheduled_s"] > 0.1
    assert slow.sum() == pytest.approx(36, abs=6)
    assert open_loop.loc[slow, "latency_scheduled_s"].mean() == pytest.approx(0.55, abs=0.12)
    assert (closed_loop["latency_scheduled_s"] > 0.5).sum() == 4


@pytest.mark.parametrize("load", [{"users": 4}, {"rate_per_s": 40}])
def test_a_run_lasts_as_long_as_it_says(truth_server, client, load):
    """To 1 %: Locust's own -t ends early by the CPU time spent before (gevent's clock stands still meanwhile)."""
    server = truth_server("service_ms=5")

    records, said = client("classify").run(server.url, duration_s=4.0, **load)

    sending = records["sent_s"].max() - said["started_s"]
    longest = (records["end_s"] - records["sent_s"]).max()
    assert sending <= 4.0 + 0.04
    assert said["ended_s"] - said["started_s"] == pytest.approx(4.0, abs=0.04 + longest)


def test_a_server_may_listen_on_ipv6(client):
    answer = b'HTTP/1.1 200 OK\r\nContent-Length: 36\r\n\r\n{"category": "x", "confidence": 0.5}'
    with _answering(answer, keep=True, host="::1") as port:
        records, _ = client("classify").run(f"http://[::1]:{port}", users=1, requests=3)

    assert records["error"].isna().all()


def test_a_request_goes_out_again_where_the_server_closed_the_connection_while_it_was_idle(client):
    """Twice answered on each connection, then closed without a word, as servers with a keep-alive limit do."""
    body = b'{"category": "x", "confidence": 0.5}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    accepted: list[int] = []
    with _answering(answer, keep=True, accepted=accepted, answers=2) as port:
        records, _ = client("classify").run(f"http://127.0.0.1:{port}", users=1, requests=8)

    assert records["error"].isna().all()
    assert len(accepted) == 4
    assert records["connected_s"].notna().sum() == 4


def test_the_kernels_stamp_does_not_wait_for_the_client(truth_server, client):
    """A client that is stopped while an answer arrives (SIGSTOP for 0.3 s) still knows when it arrived."""
    server = truth_server("service_ms=400")
    caller = client("classify")

    def freeze():
        time.sleep(0.25)
        os.kill(caller.pid, signal.SIGSTOP)
        time.sleep(0.4)
        os.kill(caller.pid, signal.SIGCONT)

    thread = threading.Thread(target=freeze)
    thread.start()
    records, _ = caller.run(server.url, users=1, requests=1)
    thread.join()

    written = server.log()[0]["written"][0] - caller.origin
    assert records["end_s"][0] - written < 0.05


def test_a_busy_generator_says_so(truth_server, client):
    """With answers that take no time the generator itself is the limit."""
    server = truth_server("service_ms=0")

    _, busy = client("classify").run(server.url, users=16, duration_s=1.5)
    _, idle = client("classify").run(server.url, rate_per_s=5, duration_s=1.5)

    assert idle["client_cpu_share"] < 0.3
    assert busy["client_cpu_share"] > 2 * idle["client_cpu_share"]


def test_a_person_who_uses_the_package_gets_no_patched_interpreter():
    """Locust patches sockets and threads when it is imported; that must stay in its own process."""
    code = (
        "import sys, benchmarks.__main__, benchmarks.compare, benchmarks.measure, benchmarks.demo;"
        "print([name for name in ('gevent', 'locust', 'geventhttpclient') if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout.strip() == "[]"


@contextmanager
def _answering(
    answer: bytes,
    *,
    keep: bool,
    accepted: list[int] | None = None,
    seen: list[bytes] | None = None,
    tls: ssl.SSLContext | None = None,
    host: str = "127.0.0.1",
    answers: int = 1_000_000,
) -> Iterator[int]:
    """A server that reads a request, writes ``answer`` and closes, or waits for the next, up to ``answers``."""
    listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)

    def serve(connection: socket.socket) -> None:
        with suppress(OSError), connection if tls is None else tls.wrap_socket(connection, server_side=True) as wire:
            left = answers
            while data := wire.recv(65536):
                if seen is not None:
                    seen.append(data)
                wire.sendall(answer)
                left -= 1
                if not keep or not left:
                    return

    def listen() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if accepted is not None:
                accepted.append(1)
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(timeout=5)
