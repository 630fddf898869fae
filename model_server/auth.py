"""Who may ask, and how often."""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from model_server.errors import AuthenticationError, ConfigurationError, RateLimitError

WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class Keys:
    """SHA-256 of each key and the name it is logged under; the keys themselves are forgotten once read."""

    names: tuple[tuple[bytes, str], ...]

    def name_of(self, authorization: bytes | None) -> str:
        """The name behind ``Authorization: Bearer <key>``.

        Every stored hash is compared in constant time, so that neither the time nor the place of a match
        tells how much of a guess was right.

        Raises:
            AuthenticationError: No key, another scheme, or a key that is not in the file.
        """
        scheme, _, key = (authorization or b"").partition(b" ")
        if scheme.lower() != b"bearer" or not key:
            raise AuthenticationError
        given = hashlib.sha256(key.strip()).digest()
        found = None
        for digest, name in self.names:
            if hmac.compare_digest(digest, given):
                found = name
        if found is None:
            raise AuthenticationError
        return found


def read_keys(path: Path) -> Keys:
    """Read one key per line, ``key`` or ``name:key``; empty lines and lines that start with # are skipped.

    Raises:
        ConfigurationError: The file cannot be read, holds no key, or names one twice. Keys are never repeated.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigurationError(f"serving.api_keys_file: cannot read {path}: {reason}") from error
    names: dict[bytes, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, key = line.strip().rpartition(":")
        if not key.strip() or (colon and not name.strip()):
            raise ConfigurationError(f"{path}:{number}: expected 'key' or 'name:key'")
        digest = hashlib.sha256(key.strip().encode()).digest()
        if digest in names:
            raise ConfigurationError(f"{path}:{number}: the same key as {names[digest]!r}")
        names[digest] = name.strip() or f"key-{digest.hex()[:8]}"
    if not names:
        raise ConfigurationError(f"serving.api_keys_file: {path} holds no key: write one per line, or name:key")
    return Keys(tuple(names.items()))


class RateLimit:
    """At most ``per_minute`` requests of one key within any 60 seconds.

    Written here because `limits` (5.8.0) reads the wall clock: after the clock stepped back an hour, a key that
    had used its minute stayed refused for that hour. Its in-memory storage also starts a thread per hit.
    """

    def __init__(self, per_minute: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._hits: dict[str, deque[float]] = {}

    def hit(self, name: str) -> None:
        """Count one request of ``name``.

        Raises:
            RateLimitError: The key has used its requests. The refused one is not counted.
        """
        if self.per_minute is None:
            return
        now = self._clock()
        hits = self._hits.get(name)
        if hits is None:
            self._forget_idle(now)
            hits = self._hits[name] = deque()
        while hits and hits[0] <= now - WINDOW_S:
            hits.popleft()
        if len(hits) >= self.per_minute:
            # The limit may have been lowered meanwhile: enough hits must leave the window, not just the first.
            free_at = hits[len(hits) - self.per_minute] + WINDOW_S
            raise RateLimitError(self.per_minute, max(1, math.ceil(free_at - now)))
        hits.append(now)

    def _forget_idle(self, now: float) -> None:
        """Without keys the name is an address, and addresses are many."""
        for name in [name for name, hits in self._hits.items() if not hits or hits[-1] <= now - WINDOW_S]:
            del self._hits[name]
