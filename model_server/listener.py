"""uvicorn, set up for us: signals stay ours, and a connection may not take for ever to say what it wants."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import uvicorn
from pydantic_core import to_json
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from model_server.schemas import error_answer

if TYPE_CHECKING:
    from starlette.types import ASGIApp

KEEP_ALIVE_S = 75
"""Longer than balancers keep idle connections (HAProxy, nginx: 60 s). The side that reuses a connection should be
the one that closes it, or its next request meets a closed door."""

HEAD_S = 20
"""A new connection must have sent a request's head within this time."""


class Listener(uvicorn.Server):
    """Stops when told by ``should_exit``, not by signals: uvicorn raises them again after its shutdown, and the
    process would end by SIGTERM instead of with 0.
    """

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class PatientProtocol(HttpToolsProtocol):
    """Closes connections that are opened and left, or that send a byte a second.

    uvicorn (0.54) only times the pause between two requests. Bodies are timed by wire.read_body, which can say
    so; what is left to do here is the head, and a body that is still coming after its answer (a 413) has gone.
    """

    body_s: float = 60.0
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._give(HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._give(None)
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._give(HEAD_S)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._give(self.body_s + 1)

    def on_message_complete(self) -> None:
        self._give(None)
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets the same error object as everything else."""
        body = to_json(error_answer(400, "invalid_http", msg))
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        self.transport.close()

    def _give(self, seconds: float | None) -> None:
        if self._late is not None:
            self._late.cancel()
        self._late = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)


def listen(app: ASGIApp, *, body_s: float, lifespan: bool = True) -> Listener:
    """A server for ``app`` on sockets that are given to ``serve``."""
    protocol: Any = type("Protocol", (PatientProtocol,), {"body_s": body_s})
    return Listener(
        uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            lifespan="on" if lifespan else "off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            # Whoever is not asked for a key is limited by address, and could write any into X-Forwarded-For.
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
    )
