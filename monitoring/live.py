"""What the live page knows: it takes in what the sources say, and tells every open page what has changed."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import psutil

from monitoring import recent, request_files
from monitoring.firing import firing
from monitoring.recent import Recent
from monitoring.request_files import RequestLine
from monitoring.served import Ollama, Scrape, Server, ServerError
from monitoring.watch import Watch

TICK_S = 1.0
DESCRIPTION_EVERY_S, ALERTS_EVERY_S = 5.0, 5.0
HISTORY_LINES = 20_000
"""Read from the files at the start: half a second on 2 cores (2026-11-26), and 200 s at 100 requests/s."""

RECONNECT_MS = 1000
"""After which browsers try again when this server went away."""

WAITING_EVENTS = 10
"""A page that is so many seconds behind is let go; it comes back and begins with the whole state."""


class Live:
    """Of one page server; everything but :meth:`_follow` runs in its event loop.

    Attributes:
        parts: What a page shows besides the rows: files, server, deployment, alerts, rates.
    """

    def __init__(
        self,
        folder: Path,
        server: Server | Ollama | None,
        prometheus: str | None,
        client: httpx2.AsyncClient,
        *,
        try_off: str | None,
        watch: Watch | None = None,
    ) -> None:
        """Args: try_off: Why pages may not ask for a classification; None: they may."""
        self.folder, self.server, self.client = folder, server, client
        self.prometheus, self.watch = prometheus, watch
        self._began, self._began_monotonic = time.time(), time.monotonic()
        self.recent = Recent(self._began)
        self.parts: dict[str, Any] = {
            "files": {"standing": "reading", "folder": str(folder), "reason": ""},
            "server": {"standing": "no_source" if server is None else "asking", "url": server and server.url},
            "deployment": None,
            "alerts": {"standing": "no_source" if prometheus is None and watch is None else "asking", "firing": []},
            "try_off": try_off,
        }
        self._sent: dict[str, Any] = {}
        self._pages: set[asyncio.Queue[bytes | None]] = set()
        self._read_twice: Counter[RequestLine] = Counter()
        psutil.cpu_percent()  # the first answer has nothing to compare with

    async def run(self) -> None:
        """Until it is cancelled."""
        threading.Thread(target=self._follow, args=(asyncio.get_running_loop(),), daemon=True, name="follow").start()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_every(TICK_S, self._tick))
            if isinstance(self.server, Server):
                tasks.create_task(_every(TICK_S, self._ask_metrics(self.server)))
            if self.server is not None:
                tasks.create_task(_every(DESCRIPTION_EVERY_S, self._ask_deployment(self.server)))
            if self.prometheus is not None or self.watch is not None:
                tasks.create_task(_every(ALERTS_EVERY_S, self._ask_alerts))

    async def stream(self) -> AsyncIterator[bytes]:
        """Server-sent events for one page: everything, then what changes."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(WAITING_EVENTS)
        self._pages.add(queue)
        try:
            now = time.time()
            whole = {"whole": True, "began": self._began, "columns": recent.COLUMNS, "slot_s": recent.SLOT_S}
            whole["rows"] = self.recent.rows(now)
            yield f"retry: {RECONNECT_MS}\n\n".encode() + _event({**whole, **self.parts, **self._moment(now)})
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self._pages.discard(queue)

    def close(self) -> None:
        """End every stream, so that the server can end."""
        for queue in self._pages:
            _put(queue, None)

    async def _tick(self) -> None:
        now = time.time()
        self.recent.tell(now, cpu_percent=psutil.cpu_percent(), memory_percent=psutil.virtual_memory().percent)
        changed = {name: part for name, part in self.parts.items() if self._sent.get(name) != part}
        self._sent |= changed
        event = _event({"rows": self.recent.changed_rows(now), **changed, **self._moment(now)})
        for queue in list(self._pages):
            if not _put(queue, event):
                self._pages.discard(queue)

    def _moment(self, now: float) -> dict[str, Any]:
        newest = self.recent.lines[0].timestamp.isoformat() if self.recent.lines else None
        return {"now": now, "rates": self.recent.rates(now), "read": self.recent.read, "newest": newest}

    # -- the sources ------------------------------------------------------------------------------------------

    def _follow(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread of its own: the files, for ever."""

        def tell(work: Callable[..., None], *arguments: object) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(work, *arguments)

        def standing(name: str, reason: str = "") -> None:
            tell(self.parts.update, {"files": {**self.parts["files"], "standing": name, "reason": reason}})

        folder, read = self.folder, False
        while True:
            try:
                if not folder.is_dir():
                    standing("missing")
                else:
                    lines = request_files.follow(folder)
                    if not read:
                        began = time.time()
                        history = request_files.read_recent(folder, HISTORY_LINES)[::-1]
                        system = read_system(folder, began - recent.KEPT_S)
                        tell(self._take_history, history, system, began)
                        read = True
                    standing("read")
                    for line in lines:
                        tell(self._take, line)
            except OSError as error:
                standing("unreadable", f"{error.filename or folder}: {error.strerror or error}")
            time.sleep(TICK_S)

    def _take_history(self, lines: list[RequestLine], system: list[tuple[float, float, float]], began: float) -> None:
        now = time.time()
        for line in lines:
            self.recent.add(line, now)
        # Written while the history was read: following brings them again.
        self._read_twice.update(line for line in lines if line.timestamp.timestamp() > began - 2)
        for at, cpu, memory in system:
            self.recent.tell(at, cpu_percent=cpu, memory_percent=memory)

    def _take(self, line: RequestLine) -> None:
        if self._read_twice[line] > 0:
            self._read_twice[line] -= 1
            return
        self.recent.add(line, time.time())

    def _ask_metrics(self, server: Server) -> Callable[[], Awaitable[None]]:
        earlier: Scrape | None = None

        async def ask() -> None:
            nonlocal earlier
            try:
                scrape = await server.scrape(time.time())
            except ServerError as error:
                earlier = None
                self.parts["server"] = {"standing": error.standing, "url": server.url, "reason": error.reason}
                return
            self.recent.tell(scrape.at, **scrape.since(earlier))
            earlier = scrape
            self.parts["server"] = {
                "standing": "known",
                "url": server.url,
                "memory_bytes": scrape.memory_bytes,
                "memory_limit_bytes": scrape.memory_limit_bytes,
            }

        return ask

    def _ask_deployment(self, server: Server | Ollama) -> Callable[[], Awaitable[None]]:
        async def ask() -> None:
            try:
                self.parts["deployment"] = await server.describe()
                told = {"standing": "no_metrics", "url": server.url}
            except ServerError as error:
                self.parts["deployment"] = None
                told = {"standing": error.standing, "url": server.url, "reason": error.reason}
            if isinstance(server, Ollama):
                self.parts["server"] = told

        return ask

    async def _ask_alerts(self) -> None:
        at = self._began + time.monotonic() - self._began_monotonic  # a clock that is set moves nothing
        self.parts["alerts"] = (await firing(self.prometheus, self.client, self.watch, at)).model_dump(mode="json")


async def _every(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        began = time.monotonic()
        await work()
        await asyncio.sleep(max(0.1, seconds - (time.monotonic() - began)))


def _event(parts: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(parts, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def _put(queue: asyncio.Queue[bytes | None], event: bytes | None) -> bool:
    """False: its page does not read, so its stream ends."""
    if queue.full() or event is None:
        while not queue.empty():
            queue.get_nowait()
        event = None
    queue.put_nowait(event)
    return event is not None


def read_system(folder: Path, since: float) -> list[tuple[float, float, float]]:
    """Unix time, CPU and memory in percent, of the machine's lines after ``since``; unreadable ones are left out."""
    found = []
    days = {datetime.fromtimestamp(since).astimezone().date(), datetime.now().astimezone().date()}
    for path in (request_files.system_path(folder, day) for day in sorted(days)):
        for raw in deque(path.read_bytes().splitlines(), 2 * recent.KEPT_S // 60) if path.exists() else ():
            with suppress(ValueError, KeyError, TypeError):
                row = json.loads(raw)
                at = datetime.fromisoformat(row["timestamp"]).timestamp()
                if since < at <= time.time():
                    found.append((at, float(row["cpu_percent"]), float(row["memory_percent"])))
    return found
