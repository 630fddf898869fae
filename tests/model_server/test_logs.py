from __future__ import annotations

import gzip
import io
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
import structlog

from model_server import logs

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()
DAY = 86_400


@pytest.fixture(autouse=True)
def _leave_logging_as_it_was():
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.NOTSET)  # a server that another test ran made them quiet
    yield
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def stream():
    """What would be stdout."""
    stream = io.StringIO()
    logs.configure("INFO", stream=stream)
    return stream


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def files(directory):
    """Every line in the archives and the current file, oldest first."""
    found = []
    for path in sorted(directory.glob("server-*.jsonl*")):
        assert path.suffix != ".part"
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        found += text.decode().splitlines()
    current = directory / "server.jsonl"
    if current.exists():
        found += current.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in found]


def file_handler(directory, now, *, max_bytes=1 << 20, keep=30):
    handler = logs._FileLines(directory, lambda: None, max_bytes=max_bytes, keep=keep, now=now)
    handler.setFormatter(logging.Formatter('{"n": %(message)s}'))
    return handler


def write(handler, text):
    handler.handle(logging.makeLogRecord({"msg": str(text)}))


# One pipeline --------------------------------------------------------------------------------------------


def test_a_line_says_when_how_bad_what_and_for_which_request(stream):
    structlog.contextvars.bind_contextvars(request_id="r-1", trace_id="0af7651916cd43dd8448eb211c80319c")
    before = datetime.now(UTC)
    structlog.get_logger("server").warning("queue full", waiting=64)
    after = datetime.now(UTC)

    (line,) = lines(stream)
    assert before <= datetime.fromisoformat(line.pop("timestamp")) <= after
    assert isinstance(line.pop("monotonic"), float)
    assert line == {
        "level": "warning",
        "logger": "server",
        "event": "queue full",
        "waiting": 64,
        "request_id": "r-1",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
    }


def test_the_standard_librarys_loggers_come_through_the_same_pipeline(stream):
    structlog.contextvars.bind_contextvars(request_id="r-2")
    logging.getLogger("uvicorn.error").info("listening on %s", "127.0.0.1", extra={"port": 8000})

    (line,) = lines(stream)
    assert line["event"] == "listening on 127.0.0.1"
    assert (line["level"], line["logger"], line["port"], line["request_id"]) == ("info", "uvicorn.error", 8000, "r-2")


def test_uvicorns_own_plain_text_handlers_are_removed():
    access = logging.getLogger("uvicorn.access")
    access.addHandler(logging.StreamHandler())
    access.propagate = False
    stream = io.StringIO()

    logs.configure("INFO", stream=stream)
    access.info("GET /")

    assert access.handlers == []
    assert [line["event"] for line in lines(stream)] == ["GET /"]


def test_a_new_level_holds_for_loggers_that_exist_already(stream):
    ours, theirs = structlog.get_logger("ours"), logging.getLogger("theirs")
    ours.debug("unseen")
    theirs.debug("unseen")
    logs.set_level("DEBUG")
    ours.debug("seen")
    theirs.debug("seen")
    logs.set_level("error")
    ours.warning("unseen")
    theirs.warning("unseen")

    assert [(line["logger"], line["event"]) for line in lines(stream)] == [("ours", "seen"), ("theirs", "seen")]


def test_an_unknown_level_is_refused_and_the_old_one_stays(stream):
    with pytest.raises(ValueError, match=r"'LOUD'.*DEBUG, INFO, WARNING, ERROR, CRITICAL"):
        logs.set_level("LOUD")
    structlog.get_logger().info("still here")

    assert len(lines(stream)) == 1


def test_configured_twice_each_line_is_written_once(stream):
    second = io.StringIO()
    logs.configure("INFO", stream=second)
    structlog.get_logger().info("once")

    assert stream.getvalue() == ""
    assert len(lines(second)) == 1


def test_a_traceback_stays_within_its_line(stream):
    try:
        {}["engine gone"]
    except KeyError:
        structlog.get_logger().exception("failed")

    (line,) = lines(stream)
    assert "KeyError: 'engine gone'" in line["exception"]


@pytest.mark.parametrize(
    "value", [float("nan"), "\udc80", "\x00\n\r ", object(), {1, 2}, b"\xff", 2**80, "😀"], ids=repr
)
def test_whatever_is_logged_one_line_of_json_comes_out(stream, value):
    structlog.get_logger().info("odd", value=value)

    assert len(stream.getvalue().split("\n")) == 2
    assert lines(stream)[0]["event"] == "odd"


def test_a_value_that_cannot_even_be_shown_is_dropped_and_counted():
    class Hostile:
        def __repr__(self):
            raise RuntimeError("no")

    dropped, stream = [], io.StringIO()
    logging.getLogger().handlers.clear()  # pytest's own would raise
    logs.configure("INFO", stream=stream, on_drop=lambda: dropped.append(1))
    structlog.get_logger().info("hostile", value=Hostile())
    structlog.get_logger().info("next")

    assert len(dropped) == 1
    assert "next" in [line["event"] for line in lines(stream)]


# Texts of clients ----------------------------------------------------------------------------------------

SECRET = "我的身份证号是110101199003071234"


def test_texts_become_lengths_wherever_they_stand(stream):
    log = structlog.get_logger()
    log.info("request", prompt=SECRET, request={"messages": [{"role": "user", "content": SECRET}]})
    log.error("answer", result=SECRET, response=SECRET, errors=[{"input": SECRET, "msg": "bad"}])
    logging.getLogger("other").warning("body", extra={"body": SECRET})

    assert SECRET not in "".join(json.dumps(line, ensure_ascii=False) for line in lines(stream))
    first, second, third = lines(stream)
    assert first["prompt_length"] == 25
    assert first["request"] == {"messages_length": 1}
    assert second["errors"] == [{"input_length": 25, "msg": "bad"}]
    assert third["body_length"] == 25


def test_text_fields_are_lengths_and_only_with_a_mask_the_masked_text(stream):
    def mask(text):
        return text.replace("110101199003071234", "<ID>")

    structlog.get_logger().info("request", **logs.text_fields(SECRET, "好"))
    structlog.get_logger().info("request", **logs.text_fields(SECRET, "好", mask))

    plain, masked = lines(stream)
    assert (plain["prompt_length"], plain["response_length"]) == (25, 1)
    assert not {"prompt_masked", "response_masked"} & plain.keys()
    assert (masked["prompt_masked"], masked["response_masked"]) == ("我的身份证号是<ID>", "好")


# Files ---------------------------------------------------------------------------------------------------


def test_with_a_folder_the_lines_go_there_and_not_to_stdout(tmp_path, capfd):
    logs.configure("INFO", tmp_path / "made" / "here")
    structlog.get_logger().info("你好")

    assert [line["event"] for line in files(tmp_path / "made" / "here")] == ["你好"]
    assert capfd.readouterr().out == ""


def test_at_its_size_a_file_becomes_a_gzip_archive_and_no_line_is_lost(tmp_path):
    handler = file_handler(tmp_path, lambda: NOON, max_bytes=1000)
    for number in range(500):
        write(handler, number)
    handler.close()

    assert [line["n"] for line in files(tmp_path)] == list(range(500))
    archives = sorted(tmp_path.glob("server-*"))
    assert len(archives) == 5
    assert {path.suffix for path in archives} == {".gz"}
    assert archives[0].name == "server-20261123-000001.jsonl.gz"
    assert all(len(gzip.decompress(path.read_bytes())) <= 1000 for path in archives)


def test_at_the_end_of_the_day_a_file_is_archived_under_its_own_day(tmp_path):
    now = NOON
    handler = file_handler(tmp_path, lambda: now)
    write(handler, 1)
    now += DAY
    write(handler, 2)
    handler.close()

    assert [path.name for path in tmp_path.glob("server-*")] == ["server-20261123-000001.jsonl.gz"]
    assert (tmp_path / "server.jsonl").read_text() == '{"n": 2}\n'


def test_what_an_earlier_run_left_yesterday_is_archived_at_the_first_line(tmp_path):
    left = tmp_path / "server.jsonl"
    left.write_text('{"n": 1}\n')
    os.utime(left, (NOON - DAY, NOON - DAY))
    handler = file_handler(tmp_path, lambda: NOON)
    write(handler, 2)
    handler.close()

    assert [path.name for path in tmp_path.glob("server-*")] == ["server-20261122-000001.jsonl.gz"]
    assert [line["n"] for line in files(tmp_path)] == [1, 2]


def test_a_clock_that_steps_back_and_forth_overwrites_no_archive(tmp_path):
    now = NOON
    handler = file_handler(tmp_path, lambda: now, max_bytes=60)
    steps = [0, -3 * DAY, DAY, -400 * DAY, 0, 20_000 * DAY, 0, DAY, 0, DAY] * 3
    for number, step in enumerate(steps):
        now = NOON + step
        write(handler, number)
    handler.close()

    by_number = sorted(tmp_path.glob("server-*"), key=lambda path: path.name.split("-")[2])
    numbers = [
        json.loads(line)["n"] for path in by_number for line in gzip.decompress(path.read_bytes()).splitlines()
    ] + [json.loads(line)["n"] for line in (tmp_path / "server.jsonl").read_text().splitlines()]
    assert numbers == list(range(30))


def test_only_the_newest_archives_are_kept_whatever_day_they_carry(tmp_path):
    """An archive of a day in the far future, from a clock that was wrong once, must not push out the new ones."""
    wrong = tmp_path / "server-20990101-000007.jsonl.gz"
    wrong.write_bytes(gzip.compress(b'{"n": -1}\n'))
    handler = file_handler(tmp_path, lambda: NOON, max_bytes=10, keep=3)
    for number in range(10):
        write(handler, number)
        if handler._compressor is not None:
            handler._compressor.join()
    handler.close()

    assert sorted(path.name for path in tmp_path.glob("server-*")) == [
        f"server-20261123-{number:06d}.jsonl.gz" for number in (14, 15, 16)
    ]
    assert [line["n"] for line in files(tmp_path)] == [6, 7, 8, 9]


def test_what_a_killed_process_left_uncompressed_is_compressed_later(tmp_path):
    (tmp_path / "server-20261122-000001.jsonl").write_text('{"n": 0}\n')
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    (tmp_path / f"server-20261122-000001.jsonl.{finished.pid}.part").write_text("half")
    (tmp_path / "server-notes.txt").write_text("not ours")
    handler = file_handler(tmp_path, lambda: NOON, max_bytes=10)
    write(handler, 1)
    write(handler, 2)
    handler.close()

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "server-20261122-000001.jsonl.gz",
        "server-20261123-000002.jsonl.gz",
        "server-notes.txt",
        "server.jsonl",
    ]


def test_a_file_or_folder_that_was_moved_away_is_made_anew(tmp_path):
    directory = tmp_path / "logs"
    handler = file_handler(directory, lambda: NOON)
    write(handler, 1)
    directory.rename(tmp_path / "moved")
    write(handler, 2)
    handler.close()

    assert [line["n"] for line in files(tmp_path / "moved")] == [1]
    assert [line["n"] for line in files(directory)] == [2]


def test_many_threads_write_whole_lines(tmp_path):
    logs.configure("INFO", tmp_path, max_bytes=20_000)
    log = structlog.get_logger()

    def work(thread):
        for number in range(200):
            log.info("line", thread=thread, number=number)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    logs.configure("INFO", stream=io.StringIO())  # closes the files

    seen = [(line["thread"], line["number"]) for line in files(tmp_path)]
    assert sorted(seen) == [(thread, number) for thread in range(8) for number in range(200)]


def test_two_servers_in_one_folder_overwrite_double_and_lose_nothing(tmp_path):
    code = textwrap.dedent("""
        import sys
        from pathlib import Path
        import structlog
        from model_server import logs
        logs.configure("INFO", Path(sys.argv[1]), max_bytes=20_000)
        for number in range(1000):
            structlog.get_logger().info("line", server=sys.argv[2], number=number)
        logs.configure("INFO")
    """)
    servers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "ab"]
    assert [server.wait(60) for server in servers] == [0, 0]

    seen = [(line["server"], line["number"]) for line in files(tmp_path)]
    assert sorted(seen) == [(server, number) for server in "ab" for number in range(1000)]


# Places that cannot be written ---------------------------------------------------------------------------


def test_a_full_disk_costs_lines_and_nothing_else_and_they_come_back_with_the_space(small_disk):
    dropped = []
    logs.configure("INFO", small_disk, on_drop=lambda: dropped.append(1), max_bytes=16_000)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 44_000)
    log = structlog.get_logger()
    for number in range(500):
        log.info("under pressure", number=number, padding="p" * 50)
    assert 100 < len(dropped) < 500

    ballast.unlink()
    lost = len(dropped)
    for number in range(500, 520):
        log.info("after", number=number)
    logs.configure("INFO", stream=io.StringIO())

    assert len(dropped) == lost
    written = files(small_disk)  # parses each: no torn line
    numbers = [line["number"] for line in written if line["event"] != "log lines were dropped"]
    assert len(numbers) == 520 - lost
    assert numbers == sorted(numbers)
    assert numbers[-20:] == list(range(500, 520))
    notes = [line["dropped"] for line in written if line["event"] == "log lines were dropped"]
    assert sum(notes) == lost


def test_a_limit_on_file_sizes_costs_lines_and_nothing_else(tmp_path):
    """RLIMIT_FSIZE stands for a full disk where nobody may mount one."""
    code = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        import structlog
        from model_server import logs
        dropped = []
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
        logs.configure("INFO", Path(sys.argv[1]), on_drop=lambda: dropped.append(1))
        for number in range(50):
            structlog.get_logger().info("line", number=number)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        structlog.get_logger().info("line", number=50)
        print(len(dropped))
    """)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )

    dropped = int(done.stdout)
    written = files(tmp_path)
    numbers = [line["number"] for line in written if "number" in line]
    assert 30 < dropped < 50
    assert numbers == [*range(50 - dropped), 50]
    assert [line["dropped"] for line in written if "dropped" in line] == [dropped]


def test_a_folder_that_cannot_be_made_costs_lines_and_nothing_else(tmp_path):
    (tmp_path / "logs").write_text("a file where the folder should be")
    dropped = []
    logs.configure("INFO", tmp_path / "logs", on_drop=lambda: dropped.append(1))
    structlog.get_logger().info("nowhere")
    (tmp_path / "logs").unlink()
    structlog.get_logger().info("somewhere")

    assert len(dropped) == 1
    assert [line["event"] for line in files(tmp_path / "logs")] == ["somewhere", "log lines were dropped"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_stdout_does_not_change_the_exit_code():
    code = textwrap.dedent("""
        import sys
        import structlog
        from model_server import logs
        dropped = []
        logs.configure("INFO", on_drop=lambda: dropped.append(1))
        for _ in range(3):
            structlog.get_logger().info("line")
        print(len(dropped), file=sys.stderr)
    """)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60
        )

    assert (done.returncode, done.stderr.strip()) == (0, "3")


def test_a_reader_of_stdout_that_left_costs_lines_and_nothing_else():
    code = textwrap.dedent("""
        import sys
        import structlog
        from model_server import logs
        dropped = []
        logs.configure("INFO", on_drop=lambda: dropped.append(1))
        sys.stdin.readline()
        structlog.get_logger().info("line")
        print(len(dropped), file=sys.stderr)
    """)
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        child.stdout.close()
        child.stdout = None
        _, errors = child.communicate("go\n", timeout=60)

    assert (child.returncode, errors.strip()) == (0, "1")
