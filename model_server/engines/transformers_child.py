"""The reference: a Qwen3 model computed with transformers, one token at a time, in plain PyTorch.

Run by the Python of the training environment. Other engines are compared with this one, so it stays flat: no
``generate()``, no batches, float32 unless told otherwise. Token ids in, token ids and log-probabilities out.

One JSON object per line. The first line of standard input says what to load::

    {"path", "dtype", "threads", "kv_cache"}

and then each of these is answered under its ``id``::

    {"id", "op": "generate", "token_ids", "max_tokens", "temperature", "top_p", "top_k", "seed", "ignore_eos"}
        -> {"id", "token", "logprob"} for each token, the last with "finish": "stop" | "length";
           "stop" comes with "token": null, because the end-of-text token is no text
    {"id", "op": "score", "prompts": [[id]], "labels": [id]}  -> {"id", "scores": [[logprob]]}
    {"id", "op": "cancel"}                                    -> nothing more under this id

A failed request is answered with {"id", "error"}; a failed load with {"error", "memory": bool}. The process ends
when standard input does.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO

import torch
from transformers import AutoModelForCausalLM


def load(path: str, dtype: str) -> tuple[Any, frozenset[int]]:
    """The model, and the tokens that end a text."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype), local_files_only=True).eval()
    ends: set[int] = set()
    # from_pretrained has read generation_config.json, or derived it from config.json.
    for end in (model.config.eos_token_id, model.generation_config.eos_token_id):
        ends |= set(end if isinstance(end, list) else [] if end is None else [end])
    return model, frozenset(ends)


def next_logprobs(model: Any, ids: list[int], cache: Any, *, kv_cache: bool) -> tuple[torch.Tensor, Any]:
    """Log-probabilities of the token after ``cache`` and ``ids``, (V,), and the cache that holds both."""
    with torch.inference_mode():
        out = model(torch.tensor([ids]), past_key_values=cache, use_cache=kv_cache, logits_to_keep=1)
        return out.logits[0, -1].float().log_softmax(-1), out.past_key_values


def choose(logprobs: torch.Tensor, task: dict[str, Any], random: torch.Generator) -> int:
    """One token: greedy at temperature 0, else temperature, then top-k, then top-p, in this order.

    Source: the order of transformers' logits warpers, which vLLM and OpenAI's documentation share.
    """
    if task["temperature"] == 0:
        return int(logprobs.argmax())
    probabilities, tokens = (logprobs / task["temperature"]).softmax(-1).sort(descending=True, stable=True)
    if task["top_k"]:
        probabilities = probabilities[: task["top_k"]]
        probabilities = probabilities / probabilities.sum()
    # The smallest set that reaches top_p: a token stays while those before it have not reached it.
    before = probabilities.cumsum(-1) - probabilities
    probabilities = probabilities * (before < task["top_p"])
    return int(tokens[torch.multinomial(probabilities, 1, generator=random)])


def generate(model: Any, ends: frozenset[int], task: dict[str, Any], *, kv_cache: bool) -> Iterator[dict[str, Any]]:
    random = torch.Generator().manual_seed(time.time_ns() if task["seed"] is None else task["seed"])
    ids: list[int] = list(task["token_ids"])
    new, cache = ids, None
    for number in range(1, task["max_tokens"] + 1):
        logprobs, cache = next_logprobs(model, new, cache, kv_cache=kv_cache)
        token = choose(logprobs, task, random)
        if token in ends and not task["ignore_eos"]:
            yield {"token": None, "finish": "stop"}
            return
        finish = {"finish": "length"} if number == task["max_tokens"] else {}
        yield {"token": token, "logprob": float(logprobs[token]), **finish}
        ids.append(token)
        new = [token] if kv_cache else ids


def score(model: Any, task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    rows = []
    for ids in task["prompts"]:
        logprobs, _ = next_logprobs(model, ids, None, kv_cache=False)
        rows.append(logprobs[task["labels"]].tolist())
        yield {}  # lets other requests take their turn between prompts
    yield {"scores": rows}


def main() -> None:
    # Libraries print to standard output; the protocol keeps the real one for itself.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())
    torch.set_num_threads(settings["threads"])
    started = time.monotonic()
    try:
        model, ends = load(settings["path"], settings["dtype"])
    except Exception as error:  # told to the parent, which knows what to do about it
        memory = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
        send(answers, {"error": f"{type(error).__name__}: {error}", "memory": memory})
        return
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    limits = {"vocabulary": model.config.vocab_size, "context_tokens": model.config.max_position_embeddings}
    send(answers, {"ready": True, "weights_s": time.monotonic() - started, "weights_bytes": weights, **limits})
    serve(answers, model, ends, kv_cache=settings["kv_cache"])


def serve(answers: TextIO, model: Any, ends: frozenset[int], *, kv_cache: bool) -> None:
    """All running requests in turn, one token each."""
    tasks: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=read, args=(tasks,), daemon=True).start()
    running: dict[int, Iterator[dict[str, Any]]] = {}
    while True:
        while not running or not tasks.empty():
            task = tasks.get()
            if task is None:
                return
            match task["op"]:
                case "generate":
                    running[task["id"]] = generate(model, ends, task, kv_cache=kv_cache)
                case "score":
                    running[task["id"]] = score(model, task)
                case "cancel":
                    running.pop(task["id"], None)
        for number, steps in list(running.items()):
            try:
                step = next(steps, None)
            except Exception as error:  # one request's; the process goes on
                step = {"error": f"{type(error).__name__}: {error}"}
            if step is None or "error" in step:
                del running[number]
            if step:
                send(answers, {"id": number, **step})


def read(tasks: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    for line in sys.stdin:
        tasks.put(json.loads(line))
    tasks.put(None)


def send(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
