"""A plain Ollama: is it there, and which models has it?"""

from __future__ import annotations

import json
from typing import Any

from benchmarks import fetch
from benchmarks.errors import EndpointError


def models(url: str) -> list[str]:
    """Names of the models, from ``GET /api/tags``.

    Raises:
        EndpointError: Nothing answers there, or not as Ollama does.
    """
    try:
        found: Any = json.loads(fetch.get(url + "/api/tags"))
        return [str(model["name"]) for model in found["models"]]
    except OSError as error:
        raise EndpointError(
            url, f"no Ollama answers ({error}): is 'ollama serve' running, and is this its port?"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise EndpointError(url, "GET /api/tags does not answer as Ollama does: for other servers use url=") from error


def choose(url: str, wanted: str | None) -> str:
    """The model ``wanted``, by its full name; the only one there when None.

    Raises:
        EndpointError: It is not there; the message lists what is.
    """
    there = models(url)
    if not there:
        raise EndpointError(url, f"this Ollama has no model: run 'ollama pull {wanted or 'qwen3:0.6b'}'")
    if wanted is None:
        if len(there) > 1:
            raise EndpointError(url, f"which model? set model= to one of {', '.join(there)}")
        return there[0]
    for name in (wanted, f"{wanted}:latest"):
        if name in there:
            return name
    raise EndpointError(url, f"no model {wanted!r}; there: {', '.join(there)}; or run 'ollama pull {wanted}'")
