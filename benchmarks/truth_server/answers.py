"""What is said: the text of an answer and the JSON that carries it, for each API.

The text depends on the prompt alone. A token is one character, so that a tokenizer that splits into characters
counts what the server counts.

Sources: LMDeploy 0.18 serve/openai/endpoints/{generate,completions}.py and chat_completions/serving.py; Ollama 0.11.4
api/types.go and server/routes.go; llama.cpp tools/server/server-task.cpp (to_json_non_oaicompat of partial and final
results); https://platform.openai.com/docs/api-reference/chat-streaming.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from benchmarks.truth_server.settings import Truth

VOCABULARY = (
    "天地人和风雨日月山水火木金土石田禾竹花草春夏秋冬东西南北上下左右大小多少高低长短远近新旧快慢早晚明暗红黄蓝白黑"
)
WHITE = " "
SPLIT_TAGS = (("<th", "ink>"), ("</th", "ink>"))
MADE_TO_FAIL = "made to fail"

PATHS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions_stream",
    "/generate": "lmdeploy_stream",
    "/completion": "llamacpp_stream",
    "/api/generate": "ollama_stream",
    "/api/chat": "ollama_chat_stream",
    "/api/v1/classify": "classify",
    "/api/v1/inference": "inference",
}
END_MARKED = {"chat_stream", "completions_stream", "lmdeploy_stream"}


def dialect_of(path: str, request: dict[str, Any]) -> str | None:
    """The API of ``path``; None where there is none."""
    found = PATHS.get(path)
    return "chat_stream" if found == "chat" and request.get("stream") else found


def prompt_of(dialect: str, request: dict[str, Any]) -> str:
    """The text that was sent.

    Raises:
        KeyError, TypeError, IndexError: A field is missing or of another kind.
    """
    if dialect in {"chat", "chat_stream", "ollama_chat_stream"}:
        return str(request["messages"][-1]["content"])
    return str(request["text" if dialect in {"classify", "inference"} else "prompt"])


def chance(text: str, what: str) -> float:
    """A number from 0 to 1 that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(f"{what}/{text}".encode()).digest()[:4]) / 2**32


def category_of(text: str) -> str:
    """The true category of a made-up call: what stands after its last ``#``."""
    return text.rpartition("#")[2] or "none"


@lru_cache(maxsize=4096)
def tokens_of(prompt: str, count: int) -> tuple[str, ...]:
    return tuple(random.Random(prompt).choices(VOCABULARY, k=count))


def answer_tokens(prompt: str, truth: Truth) -> tuple[str, ...]:
    """The tokens of the answer to ``prompt``, with the planted differences of ``truth``."""
    count = truth.tokens
    if chance(prompt, "shorter") < truth.shorter_share:
        count = max(1, count // 2)
    wrong = chance(prompt, "wrong text") < truth.wrong_text_share
    return tokens_of(f"not {prompt}" if wrong else prompt, count)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer in the making. ``first_s``, ``total_s``: planned times, seconds after the start of the work."""

    dialect: str
    modes: frozenset[str]
    prompt: str
    tokens: tuple[str, ...]
    truth: Truth
    number: int
    model: str
    created: int
    first_s: float
    total_s: float

    @property
    def half(self) -> int:
        """Tokens before this one are thoughts, where the mode has thoughts."""
        return len(self.tokens) // 2

    @property
    def thinks(self) -> bool:
        return bool(self.modes & {"reasoning", "reasoning_short", "reasoning_both", "think_tags", "think_split"})

    def pieces(self) -> tuple[str, ...]:
        """The text of each token as it is sent."""
        said = list(self.tokens)
        half = self.half
        if "whitespace_first" in self.modes:
            said[0] = WHITE
        if "think_tags" in self.modes and half >= 2:
            said[0], said[half - 1] = "<think>", "</think>"
        if "think_split" in self.modes and half >= 4:
            (said[0], said[1]), (said[half - 2], said[half - 1]) = SPLIT_TAGS
        return tuple(said)

    def contents(self) -> list[str]:
        """The texts that a client may take for the answer: thoughts between tags may stay in it."""
        said = self.pieces()
        if "tool_calls" in self.modes:
            return [""]
        if self.modes & {"think_tags", "think_split"}:
            return ["".join(said), "".join(said[self.half :])]
        return ["".join(said[self.half :] if self.thinks else said)]

    def groups(self) -> list[int]:
        """Tokens of each event."""
        count, modes = len(self.tokens), self.modes
        if "one_event" in modes:
            return [count]
        size = 4 if modes & {"several", "uneven"} else 1
        first = 1 if "uneven" in modes else 4 if modes & {"several", "first_four"} else 1
        first = min(first, count)
        whole, rest = divmod(count - first, size)
        return [first] + [size] * whole + [rest] * bool(rest)

    # The events of a stream.

    def opening(self) -> list[dict[str, Any]]:
        """Events before the first token."""
        found = []
        if "azure_first" in self.modes:
            found.append(self._chunk([]) | {"prompt_filter_results": [{"prompt_index": 0}]})
        if self.dialect == "chat_stream" and self.modes & {"role_first", "content_null"}:
            content = None if "content_null" in self.modes else ""
            found.append(self._openai({"role": "assistant", "content": content}, 0))
        return found

    def empty(self, so_far: int) -> dict[str, Any]:
        """An event without text."""
        return self.event("", 0, so_far, thinks=False)

    def event(self, text: str, count: int, so_far: int, *, thinks: bool, finish: str | None = None) -> dict[str, Any]:
        """``count`` tokens; ``so_far`` includes them."""
        if self.dialect == "chat_stream":
            return self._openai(self._delta(text, so_far, thinks=thinks), so_far, finish, text, count)
        if self.dialect == "completions_stream":
            return self._openai({"text": text}, so_far, finish, text, count)
        if self.dialect == "lmdeploy_stream":
            return self._lmdeploy(text, count, so_far, finish)
        if self.dialect == "llamacpp_stream":
            return self._llamacpp(text, count, so_far, finish)
        return self._ollama(text, so_far, finish, thinks=thinks)

    def closing(self, finish: str, *, with_finish: bool) -> list[dict[str, Any]]:
        """Events after the last token. The reason of the end is among them if ``with_finish``."""
        count = 0 if "no_answer" in self.modes else len(self.tokens)
        found = []
        if with_finish:
            if self.dialect == "chat_stream":
                last: dict[str, Any] = {"content": None} if "content_null" in self.modes else {}
                found.append(self._openai(last, count, finish))
            else:
                found.append(self.event("", 0, count, thinks=False, finish=finish))
        own_usage = not self.modes & {"no_usage", "usage_each", "usage_in_finish"}
        if self.dialect in {"chat_stream", "completions_stream"} and own_usage:
            choices: list[Any] | None = None if "choices_null" in self.modes else []
            found.append(self._chunk(choices) | {"usage": self.usage(count)})
        return found

    def error(self) -> dict[str, Any]:
        """The error of an answer that began with status 200, as the API writes it."""
        if "error_text" in self.modes or self.dialect in {"ollama_stream", "ollama_chat_stream"}:
            return {"error": MADE_TO_FAIL}
        if "error_named" in self.modes:
            return {"message": MADE_TO_FAIL, "type": "server_error"}
        full = {"object": "error", "message": MADE_TO_FAIL, "type": "server_error", "param": None, "code": 500}
        if "error_object" in self.modes:
            return full
        return {"error": full if self.dialect == "lmdeploy_stream" else {"message": MADE_TO_FAIL, "code": 500}}

    # Answers in one piece.

    def whole(self) -> dict[str, Any]:
        """The answer of an API that does not stream."""
        if self.dialect == "classify":
            category = category_of(self.prompt)
            if chance(self.prompt, "wrong") < self.truth.wrong_share:
                category = f"not {category}"
            return {
                "category": category,
                "confidence": 0.9,
                "probabilities": {category: 0.9},
                "needs_review": False,
            }
        count = len(self.tokens)
        if self.dialect == "inference":
            used = self.truth.prompt_tokens + count
            return {"result": "".join(self.tokens), "tokens_used": used, "response_time": self.total_s}
        text = "".join(self.contents())
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if "content_parts" in self.modes:
            message["content"] = [{"type": "text", "text": text}]
        if "reasoning" in self.modes:
            message["reasoning_content"] = "".join(self.pieces()[: self.half])
        finish = "length" if "finish_length" in self.modes else "stop"
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        answer = self._chunk([choice]) | {"object": "chat.completion"}
        return answer if "no_usage" in self.modes else answer | {"usage": self.usage(count)}

    def usage(self, count: int) -> dict[str, Any]:
        prompt = self.truth.prompt_tokens
        found: dict[str, Any] = {
            "prompt_tokens": prompt,
            "completion_tokens": count,
            "total_tokens": prompt + count,
        }
        if "usage_details" in self.modes:
            found["prompt_tokens_details"] = {"cached_tokens": 0}
            found["completion_tokens_details"] = {"reasoning_tokens": 0}
        return found

    def _chunk(self, choices: list[Any] | None) -> dict[str, Any]:
        chat = self.dialect != "completions_stream"
        return {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{self.number}",
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _openai(
        self, said: dict[str, Any], so_far: int, finish: str | None = None, text: str = "", count: int = 0
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0}
        choice |= {"delta": said} if self.dialect == "chat_stream" else {"text": said.get("text", "")}
        choice["logprobs"] = self._logprobs(text, count) if "logprobs" in self.modes and text else None
        choice["finish_reason"] = "" if finish is None and "finish_empty" in self.modes else finish
        chunk = self._chunk([choice])
        if "usage_each" in self.modes or ("usage_in_finish" in self.modes and finish):
            chunk["usage"] = self.usage(so_far)
        elif "usage_null" in self.modes:
            chunk["usage"] = None
        return chunk

    def _logprobs(self, text: str, count: int) -> dict[str, Any]:
        assert len(text) == count
        if self.dialect == "completions_stream":
            return {"tokens": list(text), "token_logprobs": [-0.1] * count, "top_logprobs": None}
        return {
            "content": [
                {"token": token, "logprob": -0.1, "bytes": list(token.encode()), "top_logprobs": []} for token in text
            ]
        }

    def _delta(self, text: str, so_far: int, *, thinks: bool) -> dict[str, Any]:
        modes = self.modes
        if not text:
            return {"content": ""}
        if "reasoning_both" in modes:
            return {"reasoning_content": text if thinks else None, "content": None if thinks else text}
        if thinks and modes & {"reasoning", "reasoning_short"}:
            return {"reasoning_content" if "reasoning" in modes else "reasoning": text}
        if "tool_calls" in modes:
            call: dict[str, Any] = {"index": 0, "function": {"arguments": text}}
            if so_far <= self.groups()[0]:
                call |= {"id": f"call_{self.number}", "type": "function"}
                call["function"] = {"name": "look_up", "arguments": text}
            return {"tool_calls": [call]}
        if "refusal" in modes:
            return {"refusal": text}
        if "content_parts" in modes:
            return {"content": [{"type": "text", "text": text}]}
        return {"content": text}

    def _lmdeploy(self, text: str, count: int, so_far: int, finish: str | None) -> dict[str, Any]:
        return {
            "text": text,
            "output_ids": [1000 + so_far - count + at for at in range(count)],
            "meta_info": {
                "prompt_tokens": self.truth.prompt_tokens,
                "completion_tokens": so_far,
                "finish_reason": None if finish is None else {"type": finish},
                "output_token_logprobs": None,
                "input_token_logprobs": None,
                "output_top_logprobs": None,
                "input_top_logprobs": None,
                "routed_experts": None,
            },
        }

    def _llamacpp(self, text: str, count: int, so_far: int, finish: str | None) -> dict[str, Any]:
        ids = [1000 + so_far - count + at for at in range(count)]
        chunk: dict[str, Any] = {"index": 0, "content": text, "tokens": ids, "stop": finish is not None, "id_slot": 0}
        if "no_counts" in self.modes and finish is None:
            del chunk["tokens"]
        else:
            chunk |= {"tokens_predicted": so_far, "tokens_evaluated": self.truth.prompt_tokens}
        if finish is not None:
            chunk |= {
                "model": self.model,
                "generation_settings": {"n_predict": len(self.tokens), "temperature": 0.0, "stream": True},
                "prompt": self.prompt,
                "has_new_line": False,
                "truncated": False,
                "stop_type": "limit" if finish == "length" else "eos",
                "stopping_word": "",
                "tokens_cached": self.truth.prompt_tokens + len(self.tokens) - 1,
            }
        if finish is not None or "timings_each" in self.modes:
            chunk["timings"] = self._timings(so_far)
        return chunk

    def _timings(self, so_far: int) -> dict[str, Any]:
        prompt, spent = self.truth.prompt_tokens, max(1e-6, self.total_s - self.first_s)
        return {
            "cache_n": 0,
            "prompt_n": prompt,
            "prompt_ms": self.first_s * 1e3,
            "prompt_per_token_ms": self.first_s * 1e3 / max(1, prompt),
            "prompt_per_second": prompt / max(1e-6, self.first_s),
            "predicted_n": so_far,
            "predicted_ms": spent * 1e3,
            "predicted_per_token_ms": spent * 1e3 / max(1, so_far),
            "predicted_per_second": so_far / spent,
        }

    def _ollama(self, text: str, so_far: int, finish: str | None, *, thinks: bool) -> dict[str, Any]:
        chunk: dict[str, Any] = {"model": self.model, "created_at": "2026-11-23T08:00:00.123456789Z"}
        thought = thinks and "reasoning" in self.modes
        said = {"thinking": text} if thought else {}
        content = "" if thought else text
        if self.dialect == "ollama_stream":
            chunk |= {"response": content} | said
        else:
            chunk["message"] = {"role": "assistant", "content": content} | said
        chunk["done"] = finish is not None
        if finish is None:
            return chunk
        chunk["done_reason"] = finish
        if self.dialect == "ollama_stream":
            chunk["context"] = [1, 2, 3]
        chunk |= {"total_duration": round(self.total_s * 1e9) + 2_000_000, "load_duration": 2_000_000}
        if "no_usage" in self.modes or not so_far:  # Ollama leaves out what is 0
            return chunk
        return chunk | {
            "prompt_eval_count": self.truth.prompt_tokens,
            "prompt_eval_duration": round(self.first_s * 1e9),
            "eval_count": so_far,
            "eval_duration": round((self.total_s - self.first_s) * 1e9),
        }


def dumps(content: Any, modes: frozenset[str]) -> str:
    """JSON as the modes want it written."""
    escaped = "json_escapes" in modes
    if "data_lines" in modes:
        return json.dumps(content, ensure_ascii=escaped, indent=1)
    if "json_spaces" in modes:
        return f"  {json.dumps(content, ensure_ascii=escaped, separators=(' , ', ' : '))} \t"
    return json.dumps(content, ensure_ascii=escaped, separators=(",", ":"))
