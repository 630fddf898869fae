"""The scoring form alone, in batches and without a server: the most that ``/api/v1/classify`` could reach.

``python -m benchmarks.raw_scoring MODEL_DIR threads=1 batch_tokens=2048`` reads one JSON object a line:
``{"prompts": [text, ...], "label_ids": [...], "batch": 16}``, and answers ``{"seconds", "prompts", "cpu_s"}``.
Prompts are tokenised before the clock starts.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from model_server import tokenizer
from model_server.engines.openvino_scorer import Scorer


def main(arguments: list[str]) -> None:
    model, *words = arguments
    settings: dict[str, Any] = {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in words)}
    properties = {
        "INFERENCE_NUM_THREADS": settings["threads"],
        "KV_CACHE_PRECISION": "u8",
        "ENABLE_CPU_PINNING": False,
    }
    scorer = Scorer(model, properties, settings["batch_tokens"])
    encode = tokenizer.load(Path(model)).encode
    print(json.dumps({"loaded": True}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        prompts = [encode(text) for text in command["prompts"]]
        cpu, begin = time.process_time(), time.perf_counter()
        for start in range(0, len(prompts), command["batch"]):
            list(scorer.batches(prompts[start : start + command["batch"]], command["label_ids"]))
        answer = {
            "seconds": time.perf_counter() - begin,
            "prompts": len(prompts),
            "cpu_s": time.process_time() - cpu,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
