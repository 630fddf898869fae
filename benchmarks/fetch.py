"""GET over HTTP: what a benchmark asks beside its load."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from benchmarks.errors import UsageError

MAX_BYTES = 16 << 20


def base_url(url: str) -> str:
    """``url``, without a slash at its end.

    Raises:
        UsageError: It cannot be asked, or holds a password.
    """
    try:
        parts = urlsplit(url)
        there = url.startswith(("http://", "https://")) and parts.hostname and parts.port != 0
    except ValueError as error:
        raise UsageError(f"{url!r} is not a URL: {error}") from error
    if not there:
        raise UsageError(f"a URL must begin with http:// or https:// and name a host, got {url!r}")
    if not url.isascii() or any(letter <= " " or letter == "\x7f" for letter in url):
        raise UsageError(f"a URL has neither spaces nor letters beyond ASCII, got {url!r}: write them as %20 and so on")
    if "@" in parts.netloc:
        raise UsageError("a URL must not hold a password: it is written down; set api_key_env instead")
    return url.rstrip("/")


def get(url: str, *, api_key_env: str | None = None, accept: str = "*/*", timeout_s: float = 10.0) -> bytes:
    """The body at ``url``, which begins with http:// or https://.

    Args:
        api_key_env: Variable that holds the key to send; it does not follow a redirection to elsewhere.

    Raises:
        OSError: It cannot be had; the text says why in a few words. Of another status than 200 it is an HTTPError.
    """
    request = urllib.request.Request(url, headers={"Accept": accept})  # noqa: S310 - base_url lets http and https pass only
    if api_key_env:
        request.add_unredirected_header("Authorization", f"Bearer {os.environ.get(api_key_env, '')}")
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
            return bytes(answer.read(MAX_BYTES))
    except urllib.error.HTTPError as error:
        error.close()
        raise
    except urllib.error.URLError as error:
        raise OSError(" ".join(str(error.reason).split())) from error
    except (http.client.HTTPException, ValueError) as error:
        # ValueError: characters that no request line or header can hold.
        raise OSError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
