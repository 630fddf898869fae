"""The file monitor as a process: what it writes, what it says, how it ends."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from datetime import UTC, datetime

import msgspec
import psutil
import pytest

from model_server.daily_files import SERVER_KEEPS, local_now
from model_server.masking import mask
from monitoring import files
from monitoring.daily_summary import summarise
from monitoring.files import Settings, main
from monitoring.request_files import SYSTEM_DECODER, SystemLine, read_recent, system_path

R13_SYSTEM = {"timestamp", "cpu_percent", "memory_percent", "memory_used_gb", "disk_usage_percent"}
R1_METRICS = {"response", "latency_ms", "status_code", "timestamp"}


def rows_of(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def system_rows(folder):
    with contextlib.suppress(FileNotFoundError):
        return rows_of(system_path(folder, local_now().date()))
    return []


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


# The machine -----------------------------------------------------------------------------------------------------


def test_a_line_is_what_psutil_says_under_the_names_of_r13(tmp_path):
    row = files.machine(tmp_path / "not" / "there")

    assert {"timestamp", *row} == R13_SYSTEM == set(SystemLine.model_fields)
    memory = psutil.virtual_memory()
    assert row["memory_used_gb"] == pytest.approx(memory.used / 2**30, rel=0.2)
    assert row["memory_percent"] == pytest.approx(memory.percent, abs=10)
    assert row["disk_usage_percent"] == pytest.approx(psutil.disk_usage(str(tmp_path)).percent, abs=2)
    assert 0 <= row["cpu_percent"] <= 100


def test_it_records_until_it_is_told_to_end(command, tmp_path, until):
    monitor = command("monitoring.files", f"logs={tmp_path}/logs", "interval_s=0.1")
    until(lambda: len(system_rows(tmp_path / "logs")) >= 3, "three lines")
    code, last = monitor.end(signal.SIGTERM)

    rows = system_rows(tmp_path / "logs")
    assert (code, last["lost_lines"], last["system_lines"]) == (0, 0, len(rows))
    assert all(SYSTEM_DECODER.decode(msgspec.json.encode(row)) for row in rows)
    assert abs(datetime.fromisoformat(rows[-1]["timestamp"]) - datetime.now(UTC)).total_seconds() < 60
    assert summarise(tmp_path / "logs", local_now().date()).avg_cpu_percent is not None


def test_the_default_is_a_line_a_minute_and_the_first_at_once(command, tmp_path, until):
    assert Settings().interval_s == 60
    monitor = command("monitoring.files", f"logs={tmp_path}")
    until(lambda: len(system_rows(tmp_path)) == 1, "a line")
    assert monitor.end()[1]["system_lines"] == 1


def test_a_second_monitor_in_the_same_folder_is_refused_and_one_after_it_is_not(command, tmp_path):
    first = command("monitoring.files", f"logs={tmp_path}/logs")
    first.said("recording into")
    assert command("monitoring.files", f"logs={tmp_path}/logs").ended()[0] == 2
    first.process.kill()
    first.process.wait()
    third = command("monitoring.files", f"logs={tmp_path}/logs")
    third.said("recording into")


def test_old_files_are_compressed_and_deleted_when_it_begins(command, tmp_path, until):
    for day in ("20260101", "20260102", "20260103"):
        (tmp_path / f"requests_{day}.jsonl").write_text("{}\n")
        (tmp_path / f"ollama_metrics_{day}.1.jsonl").write_text("{}\n")
    (tmp_path / "summary_20260101.json").write_text("{}")
    monitor = command(
        "monitoring.files", f"logs={tmp_path}", "interval_s=0.1", "gzip_after_days=1", "delete_after_days=2"
    )
    kept = ["ollama_metrics_20260102.1.jsonl.gz", "ollama_metrics_20260103.1.jsonl.gz"]
    kept += ["requests_20260102.1.jsonl.gz", "requests_20260103.jsonl"]
    until(lambda: sorted(path.name for path in tmp_path.glob("*_2026010*")) == [*kept, "summary_20260101.json"], kept)
    assert monitor.end()[0] == 0

    again = command("monitoring.files", f"logs={tmp_path}", "interval_s=0.1", "delete_after_days=2")
    until(lambda: not (tmp_path / "summary_20260101.json").exists(), "what is remembered of a deleted day goes")
    assert again.end()[0] == 0


# Places that cannot be written -----------------------------------------------------------------------------------


def test_a_full_disk_is_said_and_recovered_from(command, small_disk, until):
    ballast = small_disk / "ballast"
    fill(ballast)
    monitor = command("monitoring.files", f"logs={small_disk}", "interval_s=0.1")
    monitor.said("No space left on device")
    monitor.said("lines are lost until that is mended")
    ballast.unlink()
    monitor.said("is written again;")
    until(lambda: len(system_rows(small_disk)) >= 2, "lines again")
    code, last = monitor.end()

    assert code == 0
    assert last["lost_lines"] >= 1
    assert len(system_rows(small_disk)) == last["system_lines"]


def fill(path):
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass


@pytest.mark.parametrize("kind", ["a file", "no right"])
def test_a_folder_that_cannot_be_written_is_explained(tmp_path, capsys, kind):
    folder = tmp_path / "logs"
    if kind == "a file":
        folder.write_text("")
    else:
        folder.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip("cannot mount a tmpfs here")
    try:
        assert main([f"logs={folder}"]) == 2
    finally:
        if kind == "no right":
            subprocess.run(["umount", "-l", folder], check=True)
    said = capsys.readouterr().err
    assert f"cannot write into {folder} (" in said
    assert "choose another folder" in said


# What it stands beside -------------------------------------------------------------------------------------------


def test_what_is_not_there_is_said_with_an_exit_code(tmp_path, capsys, free_port):
    for words, told in (
        ([f"ollama=http://127.0.0.1:{free_port}", "listen=127.0.0.1:0"], "is 'ollama serve' running"),
        ([f"server=http://127.0.0.1:{free_port}/"], "start it with python -m model_server"),
    ):
        assert main([f"logs={tmp_path}", *words]) == 4
        out, err = capsys.readouterr()
        assert told in err
        assert "wait=true waits for it" in err
        assert json.loads(out.splitlines()[-1])["exit_code"] == 4


def test_what_cannot_be_used_is_said_in_one_line(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for words, told in (
            (["server=http://a", "ollama=http://b"], "set server or ollama, not both"),
            (["ollama=localhost:11434"], "should match pattern"),
            (["listen=11435"], "HOST:PORT is expected, for example 127.0.0.1:11435"),
            (["listen=127.0.0.1:99999"], "HOST:PORT is expected"),
            (["interval=5"], "did you mean 'interval_s'"),
            (["interval_s=0"], "greater than or equal to 0.1"),
            ([f"delete_after_days={SERVER_KEEPS.delete_after_days + 1}"], "less than or equal to 366"),
            (
                ["ollama=http://127.0.0.1:1", f"listen=127.0.0.1:{port}"],
                f"choose another, for example listen=127.0.0.1:{port + 1}",
            ),
        ):
            assert main([f"logs={tmp_path}", *words]) == 2, words
            err = capsys.readouterr().err
            assert told in err, words
            assert "Traceback" not in err


async def test_something_else_that_listens_there_is_no_server(listen, tmp_path):
    async def nobody(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    url = await listen(nobody, lifespan=False)
    for key in ("server", "ollama"):
        problem = await files._problem(Settings.model_validate({key: url, "logs": tmp_path}))
        assert "does not answer as" in problem


async def test_it_waits_for_what_is_not_there_yet_and_says_when_it_goes_and_comes(command, tmp_path, free_port, until):
    url = f"http://127.0.0.1:{free_port}"
    monitor = command("monitoring.files", f"server={url}", f"logs={tmp_path}/logs", "interval_s=0.2", "--wait")
    monitor.said("waiting")
    assert system_rows(tmp_path / "logs") == []
    for answer in ("the server at", "answers again"):
        server = subprocess.Popen([sys.executable, "-c", SERVER, str(free_port)], stderr=subprocess.DEVNULL)
        monitor.said(answer)
        server.kill()
        server.wait()
        said = monitor.log.read_text().count("no server answers at")
        until(lambda before=said: monitor.log.read_text().count("no server answers at") > before, "gone")
    assert monitor.end()[0] == 0


SERVER = """
import http.server, sys
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"status": "ready"}')
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Health).serve_forever()
"""


def test_waiting_ends_when_it_is_told_to(command, tmp_path, free_port):
    monitor = command(
        "monitoring.files",
        f"ollama=http://127.0.0.1:{free_port}",
        f"logs={tmp_path}",
        "wait=true",
        "listen=127.0.0.1:0",
    )
    monitor.said("waiting")

    assert monitor.end() == (0, {"logs": str(tmp_path), "system_lines": 0, "requests": 0, "calls": 0, "lost_lines": 0})


# Real components -------------------------------------------------------------------------------------------------


@pytest.mark.ollama
def test_a_plain_ollama_is_recorded(command, ollama, tmp_path, free_port, until):
    logs = tmp_path / "logs"
    monitor = command(
        "monitoring.files", f"ollama={ollama.url}", f"logs={logs}", f"listen=127.0.0.1:{free_port}", "interval_s=0.2"
    )
    monitor.said("recording into")
    assert "has tiny:latest" in monitor.log.read_text()
    url = f"http://127.0.0.1:{free_port}"
    with urllib.request.urlopen(f"{url}/api/tags", timeout=10) as tags:
        assert json.load(tags)["models"][0]["name"] == "tiny:latest"
    secret = "我的密码是天王盖地虎"
    answer = post(f"{url}/api/generate", {"model": "tiny", "prompt": secret, "options": {"num_predict": 8}})
    with pytest.raises(urllib.error.HTTPError, match="404"):
        post(f"{url}/api/chat", {"model": "missing", "messages": []})
    until(lambda: len(rows_of(logs / "ollama_metrics.jsonl")) == 3 and len(system_rows(logs)) > 1, "lines")
    code, last = monitor.end()

    assert code == 0
    assert (last["requests"], last["calls"], last["lost_lines"]) == (2, 3, 0)
    failed, generated = read_recent(logs, 10)
    assert (generated.status, generated.prompt_length, generated.generated_tokens) == ("success", 10, 8)
    assert (failed.status, failed.status_code, failed.model) == ("error", 404, "missing")
    assert "not found" in failed.error
    metrics = rows_of(logs / "ollama_metrics.jsonl")
    assert all(row.keys() >= R1_METRICS for row in metrics)
    assert [row["status_code"] for row in metrics] == [200, 200, 404]
    assert metrics[1]["eval_count"] == json.loads(answer.splitlines()[-1])["eval_count"] == 8
    assert metrics[1]["response"] is None
    assert not any("天王" in path.read_text() for path in logs.iterdir())
    assert summarise(logs, local_now().date()).total_requests == 2
    assert {path.stat().st_mode & 0o007 for path in logs.glob("*.jsonl")} == {0}, "nobody else reads them"


@pytest.mark.ollama
def test_answers_are_kept_masked_where_the_operator_asks_for_it(command, ollama, tmp_path, free_port, until):
    words = (f"ollama={ollama.url}", f"logs={tmp_path}/logs", f"listen=127.0.0.1:{free_port}", "record_text=true")
    monitor = command("monitoring.files", *words)
    monitor.said("recording into")
    asked = {"model": "tiny", "prompt": "a", "stream": False}
    answer = json.loads(post(f"http://127.0.0.1:{free_port}/api/generate", asked))
    until((tmp_path / "logs/ollama_metrics.jsonl").exists, "a line")
    monitor.end()

    [row] = rows_of(tmp_path / "logs/ollama_metrics.jsonl")
    assert row["response"] == mask(answer["response"])


def test_our_own_server_is_recorded_by_itself(command, tmp_path, free_port, until):
    """Also on a disk that is full for a while: it serves on, says so, and goes on writing."""
    logs, url = tmp_path / "logs", f"http://127.0.0.1:{free_port}"
    server = command("model_server", "environments/local.yml", f"serving.port={free_port}", f"serving.log_dir={logs}")
    server.said("ready: ")
    monitor = command("monitoring.files", f"server={url}", f"logs={logs}", "interval_s=0.2")
    monitor.said("recording into")
    for _ in range(3):
        found = json.loads(post(f"{url}/api/v1/classify", {"text": "宽带断了三天没人来修"}))
    with pytest.raises(urllib.error.HTTPError, match="400"):
        post(f"{url}/api/v1/classify", {"text": 5})
    until(lambda: len(read_recent(logs, 10)) == 4 and system_rows(logs), "lines")
    assert monitor.end()[0] == 0

    refused, classified, *_ = read_recent(logs, 10)
    assert (refused.status, refused.status_code, refused.error) == ("error", 400, "invalid_request")
    assert (classified.category, classified.confidence) == (found["category"], found["confidence"])
    assert classified.model == "complaints-tiny"
    in_log = {row["request_id"] for row in rows_of(logs / "server.jsonl") if row["event"] == "request"}
    assert {line.request_id for line in read_recent(logs, 10)} == in_log
    summary = summarise(logs, local_now().date())
    assert (summary.total_requests, summary.successful_requests, summary.error_requests) == (4, 3, 1)


def test_our_own_server_serves_on_when_the_disk_is_full(command, small_disk, free_port):
    url = f"http://127.0.0.1:{free_port}"
    server = command(
        "model_server", "environments/local.yml", f"serving.port={free_port}", f"serving.log_dir={small_disk}"
    )
    server.said("ready: ")
    post(f"{url}/api/v1/classify", {"text": "宽带断了"})
    fill(small_disk / "ballast")
    for _ in range(40):  # what is left of the last pages of the files
        post(f"{url}/api/v1/classify", {"text": "宽带断了"})
    server.said("lines are lost until that is mended")
    (small_disk / "ballast").unlink()
    post(f"{url}/api/v1/classify", {"text": "宽带断了"})
    server.said("is written again;")
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as metrics:
        [lost] = [
            line for line in metrics.read().decode().splitlines() if line.startswith("qwen3_log_records_dropped_total")
        ]
    assert float(lost.split()[1]) >= 1
    assert server.end(signal.SIGTERM)[0] == 0
    assert all(line.status == "success" for line in read_recent(small_disk, 100))
