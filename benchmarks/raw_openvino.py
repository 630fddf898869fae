"""The raw OpenVINO GenAI pipeline as a process that answers commands: what serving is measured against.

``python -m benchmarks.raw_openvino MODEL_DIR threads=2 slots=16 kv_blocks=400 batch_tokens=256 prefix_caching=true``
loads the pipeline with the settings a server would give it, then reads one JSON object a line from stdin and writes
one a line to stdout. It holds no server code, so that a shared mistake cannot cancel out.

Command: ``{"prompts": [text, ...], "max_tokens": n}``: all prompts at once.
Answer: ``{"seconds", "tokens", "ttft_s", "cpu_s", "rss_bytes"}``; ``ttft_s`` is the median over the prompts.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from typing import Any

import yaml

from model_server.engines import telemetry  # noqa: F401  before openvino


def main(arguments: list[str]) -> None:
    started = time.time()
    import openvino_genai as genai

    model, *words = arguments
    settings: dict[str, Any] = {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in words)}
    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = settings["kv_blocks"]
    scheduler.max_num_seqs = settings["slots"]
    scheduler.max_num_batched_tokens = settings["batch_tokens"]
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = settings["prefix_caching"]
    properties = {
        "INFERENCE_NUM_THREADS": settings["threads"],
        "KV_CACHE_PRECISION": settings.get("kv_precision", "u8"),
        "ENABLE_CPU_PINNING": False,
    }
    pipeline = genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)
    loaded_s = time.time() - started
    first = run(pipeline, ["你好"], 1)
    answer = {"loaded_s": loaded_s, "first_answer_s": time.time() - started, "first": first}
    print(json.dumps(answer), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(run(pipeline, command["prompts"], command["max_tokens"])), flush=True)


def run(pipeline: Any, prompts: list[str], max_tokens: int) -> dict[str, float]:
    config = pipeline.get_config()
    config.max_new_tokens = max_tokens
    config.ignore_eos = True
    config.do_sample = False
    cpu = time.process_time()
    begin = time.perf_counter()
    handles = {index: pipeline.add_request(index, prompt, config) for index, prompt in enumerate(prompts)}
    first: dict[int, float] = {}
    tokens = 0
    while pipeline.has_non_finished_requests():
        pipeline.step()
        now = time.perf_counter() - begin
        for index, handle in handles.items():
            while handle.can_read():
                tokens += sum(len(output.generated_ids) for output in handle.read().values())
                first.setdefault(index, now)
    return {
        "seconds": time.perf_counter() - begin,
        "tokens": tokens,
        "ttft_s": statistics.median(first.values()),
        "cpu_s": time.process_time() - cpu,
        "rss_bytes": _resident_bytes(),
    }


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123  procfs
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main(sys.argv[1:])
