"""An engine in memory with known timings and a known answer: what comes out of the server can be foretold."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import uvloop
import yaml

from model_server import deployment, server
from model_server.classification import ClassificationSettings, settings_for
from model_server.deployment import DeploymentConfig
from model_server.engine import Chunk, EngineHealth, EngineInfo, EngineState, Message, Prompt, Sampling
from model_server.errors import (
    DeploymentError,
    EngineError,
    EngineUnavailableError,
    ModelLoadError,
    TaskNotSupportedError,
)

ANSWER = "客户反映宽带无法使用,请尽快处理。"
"""Said again and again until max_tokens; one character is one token."""


class FakeEngine:
    """Tokenises one character to one token and repeats ANSWER.

    Attributes:
        token_s: Seconds before each token.
        score_s: Seconds of a batch, whatever its size.
        fail_before: Raised before the first token.
        fail_after: Tokens after which the engine fails.
        generating: Streams under way.
        cancelled: Streams that were closed early, with the tokens each had sent.
        batches: Sizes of the batches that were scored.
        prompts: Every prompt seen.
    """

    def __init__(
        self,
        *,
        token_s: float = 0.0,
        score_s: float = 0.0,
        load_s: float = 0.0,
        load_error: str | None = None,
        context_tokens: int = 4096,
        slots: int = 4,
        kv_tokens: int | None = None,
        tasks: Sequence[str] = ("generate", "classify", "logprobs"),
        answer: str = ANSWER,
        fail_before: Exception | None = None,
        fail_after: int | None = None,
    ) -> None:
        self.token_s, self.score_s, self.load_s = token_s, score_s, load_s
        self.context_tokens, self.slots, self.kv_tokens = context_tokens, slots, kv_tokens
        self.tasks, self.answer = tasks, answer
        self.fail_before, self.fail_after = fail_before, fail_after
        self.load_error = None if load_error is None else ModelLoadError("memory", load_error)
        self.source = "memory"
        self.state: EngineState = "starting"
        self.progress = 0
        self.generating = 0
        self.most_generating = 0
        self.cancelled: list[int] = []
        self.batches: list[int] = []
        self.prompts: list[Prompt] = []
        self.samplings: list[Sampling] = []
        self.closed = 0

    async def load(self) -> EngineInfo:
        await asyncio.sleep(self.load_s)
        if self.load_error is not None:
            raise self.load_error
        self.state = "ready"
        return EngineInfo(
            engine="openvino",
            model="qwen3-test",
            source=self.source,
            device="CPU",
            context_tokens=self.context_tokens,
            slots=self.slots,
            kv_tokens=self.kv_tokens,
            tasks=frozenset(self.tasks),  # type: ignore[arg-type]
            phases_s={"process": 0.1, "first_token": 0.2},
        )

    def prompt(self, content: str | Sequence[Message]) -> Prompt:
        if isinstance(content, str):
            text, messages = content, tuple[Message, ...]()
        else:
            text, messages = "\n".join(turn.content for turn in content), tuple(content)
        ids = tuple(map(ord, text))
        return Prompt(text=text, messages=messages, token_ids=ids, tokens=len(ids))

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncIterator[Chunk]:
        self.prompts.append(prompt)
        self.samplings.append(sampling)
        if self.fail_before is not None:
            raise self.fail_before
        if self.state != "ready":
            raise EngineUnavailableError(self.state)
        self.generating += 1
        self.most_generating = max(self.most_generating, self.generating)
        sent = 0
        try:
            for sent in range(sampling.max_tokens):
                await asyncio.sleep(self.token_s)
                if sent == self.fail_after:
                    raise EngineError("the fake was told to")
                self.progress += 1
                last = sent + 1 == sampling.max_tokens
                yield Chunk(
                    text=self.answer[sent % len(self.answer)],
                    token_ids=(sent,),
                    logprobs=(math.log(0.5),) if sampling.logprobs else (),
                    finish_reason="length" if last else None,
                    prompt_tokens=prompt.tokens if last else None,
                )
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled.append(sent)
            raise
        finally:
            self.generating -= 1

    async def score(self, prompts: Sequence[Prompt], label_ids: Sequence[int]) -> list[list[float]]:
        """Label number n gets 0.9 and the others share the rest, where the prompt holds n exclamation marks."""
        if "classify" not in self.tasks:
            raise TaskNotSupportedError("classify", "the fake was told so")
        if self.state != "ready":
            raise EngineUnavailableError(self.state)
        self.batches.append(len(prompts))
        await asyncio.sleep(self.score_s)
        self.progress += 1
        rest = math.log(0.1 / (len(label_ids) - 1))
        return [
            [math.log(0.9) if n == prompt.text.count("!") else rest for n in range(len(label_ids))]
            for prompt in prompts
        ]

    def health(self) -> EngineHealth:
        return EngineHealth(state=self.state, progress=self.progress, running=self.generating, slots=self.slots)

    async def close(self) -> None:
        self.state = "closed"
        self.closed += 1


def settings() -> ClassificationSettings:
    """Twelve categories, asked in the way of the fake: a letter's token is its code point."""
    return settings_for(lambda text: list(map(ord, text)), temperature=1.0, review_threshold=0.8, max_call_tokens=512)


def environment(**serving: object) -> DeploymentConfig:
    """A laptop's description of the fake."""
    return DeploymentConfig.model_validate(
        {
            "model_name": "qwen3-test",
            "model_version": "1",
            "model_source": "memory",
            "deployment_type": "local",
            "engine": "openvino",
            "resource_limits": {"cpu_cores": 2, "memory_gb": 2, "disk_gb": 1},
            "optimization_settings": {
                "enable_quantization": True,
                "quantization_bits": 8,
                "max_batch_size": 4,
                "max_sequence_length": 4096,
            },
            "serving": {"port": 0, **serving},
        }
    )


def main() -> int:
    """Serve the fake in a process of its own: ``python fake_engine.py ENVIRONMENT.yml [name=value of the fake...]``."""
    path, words = Path(sys.argv[1]), dict(word.split("=", 1) for word in sys.argv[2:])

    def read() -> DeploymentConfig:
        return deployment.load(path)

    async def serve() -> int:
        engine = FakeEngine(**{name: yaml.safe_load(value) for name, value in words.items()})
        return await server.serve(read(), engine, classifier=settings, config_path=path, read_config=read)

    try:
        return uvloop.run(serve())
    except DeploymentError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
