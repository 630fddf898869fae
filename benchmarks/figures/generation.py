"""Serving against the raw pipeline: tokens per second, time to first token, CPU of HTTP, memory, cold start."""

from __future__ import annotations

import random
import statistics
from pathlib import Path

from benchmarks.figures.load import clients, require_success, span_s
from benchmarks.figures.processes import Raw, serving
from benchmarks.figures.table import Figure, ratio_figure
from benchmarks.figures.workload import environment, plan_words, prompts, rendered

TOKENS = 64
STREAMS = (1, 8, 16)


def measure(model: Path, folder: Path, pairs: int) -> list[Figure]:
    """Both processes are loaded; each pair sends one and the other the same prompts, in random order."""
    figures = []
    # Without prefix cache on both sides: the same prompts are sent again in each pair.
    path = environment(folder, model, max_batch_size=16, enable_prefix_caching=False)
    order = random.Random(0)
    with (
        serving(path, [], folder / "server.log") as server,
        Raw("benchmarks.raw_openvino", model, plan_words(path)) as raw,
    ):
        texts = prompts(model, 16, tokens=64)
        with clients("chat_stream", texts, folder / "generation", model="figures", max_tokens=TOKENS) as load:
            raw_texts = [rendered(model, text) for text in texts]
            for streams in STREAMS:
                served, alone, first_served, first_alone, http_share = [], [], [], [], []
                for pair in range(-1, pairs):

                    def serve(count: int = streams) -> tuple[float, float, float]:
                        http_before, engine_before = server.cpu_s()
                        records = require_success(load.send(server.url, users=count, requests=count))
                        http, engine = server.cpu_s()
                        http, engine = http - http_before, engine - engine_before
                        seconds = records["output_tokens"].sum() / span_s(records)
                        first = (records["first_token_s"] - records["sent_s"]).median()
                        return float(seconds), float(first), http / (http + engine)

                    def pipeline(count: int = streams) -> tuple[float, float]:
                        answer = raw.ask({"prompts": raw_texts[:count], "max_tokens": TOKENS})
                        return answer["tokens"] / answer["seconds"], answer["ttft_s"]

                    if order.random() < 0.5:
                        (rate, first, share), (raw_rate, raw_first) = serve(), pipeline()
                    else:
                        (raw_rate, raw_first), (rate, first, share) = pipeline(), serve()
                    if pair < 0:
                        continue  # the first of each size warms both
                    served.append(rate)
                    alone.append(raw_rate)
                    first_served.append(first)
                    first_alone.append(raw_first)
                    http_share.append(share)
                figures.append(
                    ratio_figure(
                        f"tokens/s served / raw, {streams} streams", alone, served, at_least=0.95, unit="tok/s"
                    )
                )
                figures.append(
                    Figure.of(
                        f"CPU of HTTP and streaming, {streams} streams", statistics.median(http_share), at_most=0.05
                    )
                )
                if streams == 1:
                    difference = [1000 * (a - b) for a, b in zip(first_served, first_alone, strict=True)]
                    figures.append(
                        Figure.of("TTFT served - raw, 1 stream, ms", statistics.median(difference), at_most=10)
                    )
            resident = raw.ask({"prompts": raw_texts, "max_tokens": 1})["rss_bytes"]
            extra = (server.resident_bytes() - resident) / 1e6
            figures.append(Figure.of("resident memory served - raw, MB", extra, at_most=200))
    return figures


def cold_start(model: Path, folder: Path, pairs: int) -> list[Figure]:
    """From starting the process to the first answered token, ours and the raw pipeline's, files in the page cache."""
    path = environment(folder, model, max_batch_size=16, enable_prefix_caching=False)
    ours, raws = [], []
    with clients("chat_stream", prompts(model, 1, tokens=16), folder / "start", model="figures", max_tokens=1) as load:
        for pair in range(pairs):
            for side in ("ours", "raw") if pair % 2 else ("raw", "ours"):
                if side == "ours":
                    with serving(path, [], folder / "server.log") as server:
                        records = require_success(load.send(server.url, users=1, requests=1))
                        ours.append(server.ready_s + span_s(records))
                else:
                    with Raw("benchmarks.raw_openvino", model, plan_words(path)) as raw:
                        raws.append(raw.first_answer_s)
    return [ratio_figure("start to first answer, ours / raw", raws, ours, at_most=1.5, unit="s")]
