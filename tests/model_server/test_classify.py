"""The command line against a real HTTP server in a process of its own, killed for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SERVER = """
import json, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

mode, delay, log = sys.argv[1], float(sys.argv[2]), open(sys.argv[3], "a", buffering=1)
lock, seen = threading.Lock(), {}

class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["text"]
        with lock:
            seen[text] = seen.get(text, 0) + 1
            log.write(json.dumps({"text": text, "at": time.monotonic(), "path": self.path,
                                  "key": self.headers.get("Authorization")}) + "\\n")
        time.sleep(delay)
        if mode == "busy" and seen[text] == 1:
            return self.reply(429, {"error": {"message": "the queue is full"}}, {"Retry-After": "1"})
        if mode == "draining" and seen[text] == 1:
            return self.reply(503, {"error": {"message": "draining"}}, {"Retry-After": "0"})
        if mode == "locked":
            return self.reply(401, {"error": {"message": "a valid key is needed"}})
        if mode == "long" and len(text) > 20:
            return self.reply(400, {"error": {"message": "too long"}})
        if mode == "stranger":
            return self.reply(200, {"hello": "world"})
        share = len(text) / 100
        self.reply(200, {"category": "收费争议", "confidence": share, "probabilities": {"收费争议": share},
                         "needs_review": text.endswith("?")})
    def reply(self, status, body, headers={}):
        raw = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)
    def log_message(self, *_): pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
server.daemon_threads = True
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.fixture
def serve(tmp_path):
    """Start a server of a mode; gives its address and a function that reads what it was asked."""
    started = []

    def start(mode="plain", delay=0.0):
        log = tmp_path / f"asked-{len(started)}.jsonl"
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER, mode, str(delay), str(log)], stdout=subprocess.PIPE, text=True
        )
        started.append(server)
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        return url, lambda: [json.loads(line) for line in log.read_text().splitlines()]

    yield start
    for server in started:
        server.kill()
        server.wait()
        server.stdout.close()


def write_calls(path, texts):
    path.write_text("".join(json.dumps({"input_text": text}, ensure_ascii=False) + "\n" for text in texts), "utf-8")
    return path


def command(calls, out, url, *words):
    return [sys.executable, "-m", "model_server.classify", str(calls), str(out), f"url={url}", *words]


def run(calls, out, url, *words):
    done = subprocess.run(command(calls, out, url, *words), capture_output=True, text=True, check=False)
    last = done.stdout.splitlines()[-1] if done.stdout else "{}"
    return done, json.loads(last)


def rows_of(out):
    return [json.loads(line) for line in Path(out).read_text("utf-8").splitlines()]


def test_every_call_gets_one_line_with_its_number_and_the_servers_answer(serve, tmp_path):
    url, asked = serve()
    texts = [f"第{number}通" + "啊" * number for number in range(30)]
    done, summary = run(write_calls(tmp_path / "in.jsonl", texts), tmp_path / "out.jsonl", url)
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "out.jsonl")
    assert sorted(row["line"] for row in rows) == list(range(1, 31))
    assert {row["line"]: row["confidence"] for row in rows} == {n: len(t) / 100 for n, t in enumerate(texts, 1)}
    assert (summary["calls"], summary["failed"], summary["state"]) == (30, 0, "done")
    assert {one["path"] for one in asked()} == {"/api/v1/classify"}


def test_kill_9_and_a_torn_last_line_lose_no_call_and_repeat_none(serve, tmp_path):
    url, _ = serve(delay=0.05)
    calls = write_calls(tmp_path / "in.jsonl", [f"通话{number}" for number in range(60)])
    out = tmp_path / "out.jsonl"
    kills = 0
    for least in (5, 25):
        running = subprocess.Popen(command(calls, out, url, "concurrency=2"), stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (out.exists() and out.read_bytes().count(b"\n") >= least):
            time.sleep(0.01)
        os.kill(running.pid, signal.SIGKILL)
        kills += running.wait() == -signal.SIGKILL
        whole = out.read_bytes()
        with out.open("ab") as file:  # what a kill inside a write leaves behind
            file.write(b'{"line": 3, "sha2')
        before = whole.count(b"\n")
        assert 0 < before < 60
    assert kills == 2
    done, summary = run(calls, out, url)
    assert done.returncode == 0, done.stderr
    rows = rows_of(out)
    assert sorted(row["line"] for row in rows) == list(range(1, 61))
    assert summary["classified_now"] == 60 - before
    assert out.read_bytes().startswith(whole)


def test_a_finished_file_is_not_asked_again(serve, tmp_path):
    url, asked = serve()
    calls = write_calls(tmp_path / "in.jsonl", ["一", "二", "三"])
    run(calls, tmp_path / "out.jsonl", url)
    done, summary = run(calls, tmp_path / "out.jsonl", url)
    assert (done.returncode, summary["classified_now"], len(asked())) == (0, 0, 3)


def test_a_busy_server_is_asked_again_when_it_said(serve, tmp_path):
    url, asked = serve("busy")
    done, summary = run(write_calls(tmp_path / "in.jsonl", ["甲"]), tmp_path / "out.jsonl", url)
    first, second = asked()
    assert (done.returncode, summary["calls"]) == (0, 1)
    assert second["at"] - first["at"] >= 1.0


def test_a_draining_server_is_asked_again(serve, tmp_path):
    url, asked = serve("draining")
    done, _ = run(write_calls(tmp_path / "in.jsonl", ["甲", "乙"]), tmp_path / "out.jsonl", url)
    assert (done.returncode, len(asked())) == (0, 4)


def test_lines_that_cannot_be_read_are_named_and_the_others_are_answered(serve, tmp_path):
    url, asked = serve()
    calls = tmp_path / "in.jsonl"
    calls.write_bytes(
        b'{"input_text": "ok"}\n{"input_text": \n[1]\n{"text": "x"}\n\n{"input_text": "  "}\n\xff\n{"input_text": 7}\n'
        + b"[" * 5000
        + b'\n{"input_text": "ok?"}'
    )
    done, summary = run(calls, tmp_path / "out.jsonl", url)
    errors = {row["line"]: row.get("error") for row in rows_of(tmp_path / "out.jsonl")}
    assert done.returncode == 1
    assert [line for line, error in sorted(errors.items()) if error is None] == [1, 10]
    assert "not JSON" in errors[2]
    assert "JSON object" in errors[3]
    assert "'input_text'" in errors[4]
    assert "not empty" in errors[6]
    assert "not UTF-8" in errors[7]
    assert "not empty, got 7" in errors[8]
    assert "not JSON" in errors[9]
    assert "line 2: not JSON" in done.stderr
    assert (summary["failed"], summary["needs_review"], len(asked())) == (7, 1, 2)


def test_a_call_that_the_server_refuses_becomes_an_error_line(serve, tmp_path):
    url, _ = serve("long")
    done, _ = run(write_calls(tmp_path / "in.jsonl", ["短", "长" * 30]), tmp_path / "out.jsonl", url)
    errors = {row["line"]: row.get("error") for row in rows_of(tmp_path / "out.jsonl")}
    assert (done.returncode, errors) == (1, {1: None, 2: "status 400: too long"})


@pytest.mark.parametrize(("mode", "told"), [("locked", "a valid key is needed"), ("stranger", "not a model server")])
def test_a_server_that_cannot_answer_ends_the_run_and_writes_nothing(serve, tmp_path, mode, told):
    url, _ = serve(mode)
    done, summary = run(write_calls(tmp_path / "in.jsonl", ["甲"] * 50), tmp_path / "out.jsonl", url)
    assert (done.returncode, summary["state"]) == (1, "stopped")
    assert told in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert rows_of(tmp_path / "out.jsonl") == []


def test_the_key_in_a_file_is_sent(serve, tmp_path):
    url, asked = serve()
    (tmp_path / "key").write_text("secret-7\n")
    run(write_calls(tmp_path / "in.jsonl", ["甲"]), tmp_path / "out.jsonl", url, f"api_key_file={tmp_path / 'key'}")
    assert [one["key"] for one in asked()] == ["Bearer secret-7"]


def test_the_journal_of_another_file_is_refused(serve, tmp_path):
    url, _ = serve()
    run(write_calls(tmp_path / "a.jsonl", ["甲"]), tmp_path / "out.jsonl", url)
    done, _ = run(write_calls(tmp_path / "b.jsonl", ["乙"]), tmp_path / "out.jsonl", url)
    assert done.returncode == 2
    assert "answers another file" in done.stderr


def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(serve, tmp_path):
    url, _ = serve()
    (tmp_path / "out.jsonl").write_text("notes\n")
    done, _ = run(write_calls(tmp_path / "in.jsonl", ["甲"]), tmp_path / "out.jsonl", url)
    assert (done.returncode, (tmp_path / "out.jsonl").read_text()) == (2, "notes\n")


def test_two_runs_do_not_write_one_file(serve, tmp_path):
    url, _ = serve(delay=0.5)
    calls = write_calls(tmp_path / "in.jsonl", [f"通话{number}" for number in range(8)])
    out = tmp_path / "out.jsonl"
    first = subprocess.Popen(
        command(calls, out, url, "concurrency=1"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (out.exists() and out.stat().st_size):
        time.sleep(0.01)
    second, _ = run(calls, out, url)
    first.kill()
    first.wait()
    assert second.returncode == 2
    assert "another run" in second.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["in.jsonl"], "python -m model_server.classify"),
        (["missing.jsonl", "out.jsonl", "url=http://127.0.0.1:1"], "no file missing.jsonl"),
        (["in.jsonl", "out.jsonl", "url=ftp://x"], "url"),
        (["in.jsonl", "out.jsonl", "url=http://x", "concurency=3"], "did you mean 'concurrency'"),
        (["in.jsonl", "out.jsonl", "url=http://x", "concurrency=0"], "concurrency"),
    ],
)
def test_misuse_is_explained_without_a_traceback(tmp_path, monkeypatch, capsys, words, told):
    from model_server import classify

    monkeypatch.chdir(tmp_path)
    write_calls(tmp_path / "in.jsonl", ["甲"])
    assert classify.main(words) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()
