"""What a model server or a plain Ollama says of itself, and a classification; the key stays on this side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from model_server.schemas import ModelDescription
from runconfig import ConfigError

SECRET_FREE = ModelDescription.model_fields.keys() - {"detail", "phases_s"}
"""What the page shows of /api/v1/model; ``detail`` is the engine's own and has no fixed content."""


class ServerError(Exception):
    """The server gave no usable answer.

    Attributes:
        standing: unreachable | refused_key | unusable.
    """

    def __init__(self, standing: str, reason: str) -> None:
        super().__init__(standing, reason)
        self.standing, self.reason = standing, reason

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True, slots=True)
class Scrape:
    """``/metrics`` at one moment; totals are counters, labels summed."""

    at: float
    waiting: float
    running: float
    prompt_tokens_total: float
    generated_tokens_total: float
    memory_bytes: float
    memory_limit_bytes: float

    def since(self, earlier: Scrape | None) -> dict[str, float | None]:
        """Columns of :mod:`monitoring.recent`; rates are None at first and when the server began anew."""
        columns: dict[str, float | None] = {"waiting": self.waiting, "running": self.running}
        for name in ("prompt_tokens", "generated_tokens"):
            more = 0.0 if earlier is None else getattr(self, f"{name}_total") - getattr(earlier, f"{name}_total")
            known = earlier is not None and more >= 0 and self.at > earlier.at
            columns[f"{name}_s"] = more / (self.at - earlier.at) if known and earlier is not None else None
        return columns


SERIES: Mapping[str, str] = {
    "waiting": "qwen3_queue_depth",
    "running": "qwen3_running",
    "prompt_tokens_total": "qwen3_prompt_tokens_total",
    "generated_tokens_total": "qwen3_generated_tokens_total",
    "memory_bytes": "qwen3_model_memory_usage_bytes",
    "memory_limit_bytes": "qwen3_memory_limit_bytes",
}


class Server:
    """The server at ``url``.

    Raises:
        ServerError: From every method.
    """

    def __init__(self, url: str, metrics_url: str | None, key_file: Path | None, client: httpx2.AsyncClient) -> None:
        self.url, self._key_file, self._client = url.rstrip("/"), key_file, client
        self.metrics_url = metrics_url or f"{self.url}/metrics"

    async def describe(self) -> dict[str, Any]:
        answer = await self._ask("GET", f"{self.url}/api/v1/model")
        try:
            return ModelDescription.model_validate_json(answer.content).model_dump(include=set(SECRET_FREE))
        except ValidationError as error:
            raise ServerError("unusable", f"{self.url}/api/v1/model does not describe a model") from error

    async def scrape(self, at: float) -> Scrape:
        answer = await self._ask("GET", self.metrics_url)
        values: dict[str, float] = {}
        try:
            for family in text_string_to_metric_families(answer.text):
                for sample in family.samples:
                    values[sample.name] = values.get(sample.name, 0.0) + sample.value
            return Scrape(at, **{name: values[series] for name, series in SERIES.items()})
        except (ValueError, KeyError) as error:
            raise ServerError("unusable", f"{self.metrics_url} has no metrics of a model server: {error}") from error

    async def classify(self, text: str, timeout_s: float) -> tuple[int, bytes]:
        """Status and body of the server's answer, which is JSON in either case."""
        body = {"text": text}
        answer = await self._send("POST", f"{self.url}/api/v1/classify", json=body, timeout=timeout_s)
        if "json" not in answer.headers.get("content-type", ""):
            raise ServerError("unusable", f"{self.url} answered with status {answer.status_code} and no JSON")
        return answer.status_code, answer.content

    async def _ask(self, method: str, url: str) -> httpx2.Response:
        answer = await self._send(method, url)
        if answer.status_code in {401, 403}:
            advice = "the key in api_key_file is not among its keys" if self._key_file else "set api_key_file=FILE"
            raise ServerError("refused_key", f"{url} wants a key: {advice}")
        if answer.status_code != 200:
            raise ServerError("unusable", f"{url} answered with status {answer.status_code}")
        return answer

    async def _send(self, method: str, url: str, **more: Any) -> httpx2.Response:
        headers = {}
        if self._key_file is not None and urlsplit(url).netloc == urlsplit(self.url).netloc:
            try:
                headers["authorization"] = f"Bearer {read_key(self._key_file)}"
            except ConfigError as error:
                raise ServerError("refused_key", str(error)) from error
        try:
            return await self._client.request(method, url, headers=headers, **more)
        except httpx2.HTTPError as error:
            raise ServerError("unreachable", f"{url}: {error or type(error).__name__}") from error


class Ollama:
    """A plain Ollama at ``url``: it has no metrics and no queue that it would tell of."""

    def __init__(self, url: str, client: httpx2.AsyncClient) -> None:
        self.url, self._client = url.rstrip("/"), client

    async def describe(self) -> dict[str, Any]:
        """Its version and models; ``loaded`` are in memory.

        Raises:
            ServerError: It gave no usable answer.
        """
        try:
            version, tags, running = [(await self._get(path)) for path in ("version", "tags", "ps")]
            loaded = {str(model["name"]) for model in running["models"]}
            models = [
                {
                    "name": str(model["name"]),
                    "bytes": int(model["size"]),
                    "quantization": str(model["details"]["quantization_level"]),
                    "loaded": model["name"] in loaded,
                }
                for model in tags["models"]
            ]
            return {"name": "Ollama", "version": str(version["version"]), "state": "ready", "models": models}
        except (ValueError, KeyError, TypeError) as error:
            raise ServerError("unusable", f"{self.url} is no Ollama") from error

    async def _get(self, path: str) -> Any:
        try:
            answer = await self._client.get(f"{self.url}/api/{path}")
            answer.raise_for_status()
            return answer.json()
        except httpx2.HTTPError as error:
            raise ServerError("unreachable", f"{self.url}: {error or type(error).__name__}") from error


def read_key(path: Path) -> str:
    """The first key in a file of the server's form: ``key`` or ``name:key`` a line, # begins a comment.

    Raises:
        ConfigError: It cannot be read, or holds none. The key is never repeated.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"api_key_file: cannot read {path}: {reason}") from error
    keys = [line.rpartition(":")[2].strip() for line in lines if line and not line.startswith("#")]
    if not keys or not keys[0].isascii() or not keys[0]:
        raise ConfigError(f"api_key_file: {path} holds no key: write it on a line of its own")
    return keys[0]
