"""The live page's API and process, asked as a browser or a script would; the model server is the real one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta

import pytest
from page_server import (
    PROJECT,
    ask,
    events,
    free_port,
    get,
    line,
    model_server,
    page,
    requests_file,
    some,
    until,
    write,
)

from model_server.cache import cache_dir
from monitoring.dashboard import MAX_TEXT, Settings

KEY = "a-key-that-must-stay-here"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A model server that asks for a key."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "keys").write_text(f"page:{KEY}\n", encoding="utf-8")
    with model_server(folder, f"serving.api_keys_file={folder}/keys") as server:
        yield server


@pytest.fixture
def logs(tmp_path):
    return tmp_path / "logs"


def classify(url, body=b'{"text": "\\u5bbd\\u5e26\\u65ad\\u4e86"}', **headers):
    status, answer, _ = ask(f"{url}/api/classify", body, {"content-type": "application/json"} | headers)
    return status, json.loads(answer)


# -- the command line ---------------------------------------------------------------------------------------


def run(*words):
    command = [sys.executable, "-m", "monitoring.dashboard", *map(str, words)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False)


def test_help_explains_every_setting():
    done = run("--help")
    assert done.returncode == 0
    for name in Settings.model_fields:
        assert f"  {name}=" in done.stdout


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("prot=1", "did you mean 'port'"),
        ("port=70000", "port"),
        ("server=localhost:8000", "must look like http://127.0.0.1:8000, got 'localhost:8000'"),
        ("server=http://", "must look like http"),
        ("prometheus=http://me:secret@host", "must not hold a password"),
        ("limit", "key=value"),
        ("logs=pyproject.toml", "is no folder"),
        ("api_key_file=/nowhere/key", "cannot read /nowhere/key"),
        ("api_key_file=/dev/null", "holds no key"),
        ("server=http://a ollama=http://b", "give server= or ollama="),
        ("host=192.0.2.1", "cannot listen on 192.0.2.1"),
    ],
)
def test_a_setting_that_cannot_be_used_is_told(word, told):
    done = run(*word.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr.partition("must not")[2]


def test_a_port_in_use_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(f"port={port}")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"port {port} on 127.0.0.1 is in use" in done.stderr
    assert f"port={port + 1}" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_order_while_pages_are_open(logs, number):
    write(logs, *some(7))
    with page(logs) as running:
        begun = threading.Event()

        def read():
            with socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2]))) as stream:
                stream.sendall(b"GET /api/live HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
                while stream.recv(65536):
                    begun.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert begun.wait(20)
        running.process.send_signal(number)
        assert running.process.wait(20) == 0
        reader.join(20)
        assert not reader.is_alive()
        text = running.log.read_text(encoding="utf-8")
    assert "Traceback" not in text
    assert json.loads(text.splitlines()[-1]) == {"url": running.url, "requests": 7}


# -- the files ----------------------------------------------------------------------------------------------


def test_the_last_hundred_requests_newest_first(logs):
    rows = some(150)
    write(logs, *rows)
    with page(logs) as running:
        until(lambda: get(f"{running.url}/api/recent_requests")[1])
        status, found = get(f"{running.url}/api/recent_requests")
        assert status == 200
        assert [each["request_id"] for each in found] == [f"id-{number}" for number in range(149, 49, -1)]
        r13 = ("model", "prompt_length", "response_length", "latency_ms", "error", "status")
        assert [[each[name] for name in r13] for each in found] == [[row[name] for name in r13] for row in rows[:49:-1]]
        assert [datetime.fromisoformat(each["timestamp"]) for each in found] == [
            datetime.fromisoformat(row["timestamp"]) for row in rows[:49:-1]
        ]

        slow = sorted(row["latency_ms"] for row in rows)[100]
        status, found = get(f"{running.url}/api/recent_requests?limit=5&model=OTHER&latency_above_ms={slow}")
        fitting = [
            row["request_id"] for row in rows[::-1] if row["model"] == "other-model" and row["latency_ms"] >= slow
        ]
        assert [each["request_id"] for each in found] == fitting[:5]
        assert len(get(f"{running.url}/api/recent_requests?status=error&limit=1000")[1]) == 15
        assert [each["error"] for each in get(f"{running.url}/api/recent_requests?error=FULL%2014")[1]] == [
            "queue full 140"
        ]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "status=bad", "latency_above_ms=-1", "latency_above_ms=nan"]
)
def test_a_query_that_cannot_be_answered_is_told(logs, query):
    with page(logs) as running:
        status, found = get(f"{running.url}/api/recent_requests?{query}")
    assert status == 400
    assert query.partition("=")[0] in found["error"]["message"]


def test_the_summary_of_a_day(logs):
    rows, day_before = some(40, seconds=1), datetime.now().astimezone() - timedelta(days=1)
    write(logs, *rows)
    with requests_file(logs, day_before).open("w", encoding="utf-8") as file:
        file.write(json.dumps(line(day_before, latency_ms=7)) + "\n")
    with page(logs) as running:
        status, today = get(f"{running.url}/api/summary")
        good = [row["latency_ms"] for row in rows if row["status"] == "success"]
        assert status == 200
        assert (today["total_requests"], today["successful_requests"], today["error_requests"]) == (40, 36, 4)
        assert today["avg_latency_ms"] == pytest.approx(statistics.fmean(good), rel=1e-3)
        assert today["max_latency_ms"] == pytest.approx(max(good), rel=1e-3)
        assert {"avg_cpu_percent", "max_memory_percent"} <= today.keys()
        before = get(f"{running.url}/api/summary?date={day_before:%Y-%m-%d}")[1]
        assert (before["total_requests"], before["max_latency_ms"]) == (1, 7)
        assert get(f"{running.url}/api/summary?date=2020-01-01")[1]["total_requests"] == 0


@pytest.mark.parametrize("text", ["26.11.2026", "2026-02-30", "", "?", "2999-01-01", "<script>"])
def test_a_wrong_date_is_told(logs, text):
    with page(logs) as running:
        status, found = get(f"{running.url}/api/summary?date={text}")
        missing_folder = get(f"{running.url}/api/summary")
    assert (status, found["error"]["code"]) == (400, "wrong_date")
    assert missing_folder[0] == 503


def test_a_folder_that_is_not_there_is_told_and_waited_for(logs):
    with page(logs) as running:
        assert f"there is no folder {logs} yet" in running.log.read_text(encoding="utf-8")
        assert get(f"{running.url}/api/recent_requests") == (200, [])
        status, found = get(f"{running.url}/api/summary")
        assert (status, found["error"]["code"]) == (503, "folder_missing")
        until(lambda: events(running.url, 1)[0]["files"]["standing"] == "missing")

        write(logs, line(request_id="first"))
        until(lambda: get(f"{running.url}/api/recent_requests")[1])
        write(logs, line(request_id="second"))
        until(lambda: len(get(f"{running.url}/api/recent_requests")[1]) == 2)
        assert [each["request_id"] for each in get(f"{running.url}/api/recent_requests")[1]] == ["second", "first"]
        until(lambda: events(running.url, 1)[0]["files"]["standing"] == "read")


def test_what_is_written_while_the_page_starts_is_counted_once(logs):
    """300 lines a second from before its start: reading the past and following overlap, and nothing may be lost."""
    written, stop = [], threading.Event()

    def keep_writing():
        while not stop.is_set():
            row = line(request_id=f"w-{len(written)}")
            write(logs, row)
            written.append(row)
            time.sleep(1 / 300)

    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        with page(logs) as running:
            time.sleep(3)
            stop.set()
            writer.join()
            until(lambda: events(running.url, 1)[0]["read"] >= len(written))
            time.sleep(0.5)
            found = get(f"{running.url}/api/recent_requests?limit=1000")[1]
            assert events(running.url, 1)[0]["read"] == len(written)
    finally:
        stop.set()
        writer.join()
    assert sorted(int(each["request_id"][2:]) for each in found) == list(range(len(written) - len(found), len(written)))


def test_a_stream_begins_with_everything_and_goes_on_with_what_changed(logs):
    write(logs, *some(60, seconds=30))
    with page(logs) as running:
        until(lambda: events(running.url, 1)[0]["read"] == 60)
        first, _, *more = events(running.url, 5)  # the second may still tell of the history
        assert first["whole"]
        at, requests = first["columns"].index("at"), first["columns"].index("requests")
        assert sum(row[requests] for row in first["rows"]) == 60
        assert len(first["rows"]) > 10
        assert all("whole" not in each and len(each["rows"]) < 5 for each in more)
        assert more[-1]["rows"][-1][at] >= first["rows"][-1][at]


# -- the model server ---------------------------------------------------------------------------------------


def test_a_classification_goes_through_with_the_key_and_the_key_stays(logs, tmp_path, guarded):
    (tmp_path / "key").write_text(f"# ours\npage:{KEY}\n", encoding="utf-8")
    with page(logs, f"api_key_file={tmp_path}/key", server=guarded.url) as running:
        status, found = classify(running.url)
        assert status == 200
        assert found["category"] in found["probabilities"]
        until(lambda: events(running.url, 1)[0]["deployment"] is not None)
        until(lambda: events(running.url, 1)[0]["server"]["standing"] == "known")
        whole = events(running.url, 2)
        assert KEY not in json.dumps(whole)
        deployment = whole[0]["deployment"]
        assert deployment["name"] == "complaints-tiny"
        assert "detail" not in deployment
        served = get(f"{guarded.url}/api/v1/model", authorization=f"Bearer {KEY}")[1]
        assert deployment == {name: served[name] for name in deployment}
        assert classify(running.url, b'{"text": "x", "texts": []}')[0] == 400
        assert classify(running.url, b'{"text": ""}')[0] == 400
        assert classify(running.url, json.dumps({"text": "x" * (MAX_TEXT + 1)}).encode())[0] == 400
    assert KEY not in running.log.read_text(encoding="utf-8")


def test_a_server_that_wants_a_key_is_told(logs, guarded):
    with page(logs, server=guarded.url) as running:
        until(lambda: events(running.url, 1)[0]["server"]["standing"] == "refused_key")
        assert "api_key_file" in events(running.url, 1)[0]["server"]["reason"]
        assert classify(running.url)[0] == 401


def test_the_key_goes_to_no_other_address(logs, tmp_path, guarded):
    """metrics= may name another machine."""
    heard = []
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(20)

        def listen():
            connection, _ = other.accept()
            with connection:
                heard.append(connection.recv(65536).decode().lower())

        listening = threading.Thread(target=listen)
        listening.start()
        (tmp_path / "key").write_text(KEY, encoding="utf-8")
        elsewhere = f"metrics=http://127.0.0.1:{other.getsockname()[1]}/metrics"
        with page(logs, elsewhere, f"api_key_file={tmp_path}/key", server=guarded.url):
            listening.join(20)
    assert heard[0].startswith("get /metrics")
    assert "authorization" not in heard[0]


def test_a_server_that_does_not_answer_is_told(logs):
    with page(logs, server="http://127.0.0.1:9") as running:
        until(lambda: events(running.url, 1)[0]["server"]["standing"] == "unreachable")
        status, found = classify(running.url)
    assert (status, found["error"]["code"]) == (502, "unreachable")


def test_something_else_than_a_model_server_is_told(logs):
    with page(logs) as other, page(logs, server=other.url) as running:
        until(lambda: events(running.url, 1)[0]["server"]["standing"] == "unusable")
        assert events(running.url, 1)[0]["deployment"] is None


@pytest.mark.ollama
def test_a_plain_ollama_is_shown(logs, tmp_path):
    """The real one, with the tiny model of our other tests."""
    binary = shutil.which("ollama") or str(cache_dir() / "bin" / "ollama")
    url = f"http://127.0.0.1:{free_port()}"
    environ = os.environ | {"OLLAMA_HOST": url, "OLLAMA_MODELS": str(tmp_path / "models"), "HOME": str(tmp_path)}
    for words in (
        ["tests/tools/tiny_qwen3.py", tmp_path / "tiny"],
        ["-m", "training.gguf_model", tmp_path / "tiny", tmp_path / "tiny.gguf", "f32"],
    ):
        subprocess.run([sys.executable, *words], check=True, cwd=PROJECT, capture_output=True)
    (tmp_path / "Modelfile").write_text(f"FROM {tmp_path}/tiny.gguf\n", encoding="utf-8")
    with page(logs, f"ollama={url}", server=None) as running:
        until(lambda: events(running.url, 1)[0]["server"]["standing"] == "unreachable")
        with (tmp_path / "log").open("wb") as log:
            ollama = subprocess.Popen([binary, "serve"], env=environ, stdout=log, stderr=log, start_new_session=True)
        try:
            until(lambda: get(f"{url}/api/version")[0] == 200)
            subprocess.run(
                [binary, "create", "tiny", "-f", tmp_path / "Modelfile"], env=environ, check=True, capture_output=True
            )
            until(lambda: (events(running.url, 1)[0]["deployment"] or {}).get("models"))
            whole = events(running.url, 1)[0]
            (told,) = get(f"{url}/api/tags")[1]["models"]
        finally:
            os.killpg(ollama.pid, signal.SIGKILL)
            ollama.wait()
        assert classify(running.url)[0] == 403
    (model,) = whole["deployment"]["models"]
    assert (model["name"], model["loaded"]) == ("tiny:latest", False)
    assert model["bytes"] == told["size"]
    assert whole["deployment"]["version"]
    assert (whole["server"]["standing"], whole["try_off"]) == ("no_metrics", "ollama")


# -- who may ask --------------------------------------------------------------------------------------------


def test_every_answer_forbids_foreign_script(logs):
    with page(logs) as running:
        for path in ("/", "/page/page.js", "/api/summary", "/api/nothing", "/api/recent_requests?limit=x"):
            policy = ask(running.url + path)[2]["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "require-trusted-types-for 'script'" in policy


def test_a_body_is_bounded_before_it_is_read(logs, guarded):
    with page(logs, server=guarded.url) as running:
        with socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2])), timeout=20) as sock:
            sock.sendall(b"POST /api/classify HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999\r\n\r\n")
            assert b" 413 " in sock.recv(65536)
        with socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2])), timeout=20) as sock:
            sock.sendall(b"POST /api/classify HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
            assert b" 413 " in sock.recv(65536)


@pytest.mark.parametrize("host", ["::1", "localhost", "127.0.0.2"])
def test_every_address_of_this_machine_can_be_used(logs, host):
    with page(logs, f"host={host}") as running:
        assert get(f"{running.url}/api/recent_requests")[0] == 200
        assert ask(running.url, headers={"host": "evil.example"})[0] == 400


def test_another_site_cannot_ask_through_the_readers_browser(logs, guarded):
    with page(logs, server=guarded.url) as running:
        assert ask(running.url, headers={"host": "evil.example"})[0] == 400
        assert classify(running.url, **{"sec-fetch-site": "cross-site"})[0] == 403
        assert classify(running.url, b"text=x", **{"content-type": "application/x-www-form-urlencoded"})[0] == 400
        assert classify(running.url, **{"content-type": "text/plain"})[0] == 400


def test_where_others_reach_the_page_it_asks_nobody_in_the_owners_name(logs, guarded):
    with page(logs, "host=0.0.0.0", server=guarded.url) as running:
        assert "others can reach" in running.log.read_text(encoding="utf-8")
        assert classify(running.url)[0] == 403
        assert events(running.url, 1)[0]["try_off"] == "reachable"
