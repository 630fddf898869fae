"""Runs tasks in the training environment, each in a fork of a process that has imported everything already.

Importing torch, transformers and peft takes longer than most of what is tested. Reads one JSON object a line:

    {"code": "..."}                                    executed
    {"run": ["training.finetune", "config.yml", ...]}  the module's command line
    ... "kill_at_event": 7      SIGKILL just before the 7th change in "watched" (open to write, rename, remove, mkdir)
    ... "kill_after_lines": [path, 3], "signal": 15    that signal once the file has 3 lines
    ... "kill_after_s": 0.5                            and so much later

and answers each with a line: status (negative: the signal that ended it), stdout, stderr, events, seconds.
"""

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import accelerate  # noqa: F401
import bitsandbytes  # noqa: F401
import peft  # noqa: F401
import pyarrow.parquet  # noqa: F401
import torch
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: F401

from training import finetune, new_base, plan, sweep

ENTRIES = {
    "training.finetune": finetune.run,
    "training.plan": plan.main,
    "training.new_base": new_base.run,
    "training.sweep": sweep.run,
}
CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def watch(folder, kill_at, report):
    """Count what changes files below ``folder``; audit hooks see every call before it happens."""
    count = 0

    def hook(event, arguments):
        nonlocal count
        if event not in CHANGES or not isinstance(arguments[0], str | os.PathLike):
            return
        if not os.fspath(arguments[0]).startswith(folder):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITES):
            return
        count += 1
        os.pwrite(report, f"{count:9d}".encode(), 0)
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def child(task, out, err, report):
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdin.close()
    os.environ.update(task.get("environment", {}))
    if "watched" in task:
        watch(task["watched"], task.get("kill_at_event"), report)
    status = 1
    try:
        if "code" in task:
            exec(task["code"], {"__name__": "task"})
            status = 0
        else:
            module, *words = task["run"]
            status = ENTRIES[module](words)
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def lines_of(path):
    try:
        return Path(path).read_bytes().count(b"\n")
    except OSError:
        return 0


def serve(task):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as report:
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            child(task, out.fileno(), err.fileno(), report.fileno())
        if "kill_after_lines" in task:
            path, lines = task["kill_after_lines"]
            while lines_of(path) < lines and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                time.sleep(0.001)
            time.sleep(task.get("kill_after_s", 0))
            os.kill(pid, task["signal"])
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = [(file.seek(0), file.read().decode())[1] for file in (out, err, report)]
        return {
            "status": status,
            "stdout": texts[0],
            "stderr": texts[1],
            "events": int(texts[2] or 0),
            "seconds": time.monotonic() - started,
        }


if __name__ == "__main__":
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), file=answers, flush=True)
