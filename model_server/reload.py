"""Settings that change while the server runs: same process, no stream cut.

Hot are the content of the key file, the rate limit and the log level. A file that cannot be used is refused with
the reason and everything stays as it was; changes that need more than this are named and wait for a restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from model_server import logs
from model_server.auth import RateLimit, read_keys
from model_server.deployment import DeploymentConfig, changes
from model_server.errors import ConfigurationError

if TYPE_CHECKING:
    from model_server.app import Edge

POLL_S = 0.5
"""Two stat calls per round. Kernel notifications would be quicker, but say nothing on network file systems and
follow the directory, not the file, where Kubernetes swaps the symlink of a ConfigMap."""

log = structlog.get_logger("model_server")


class Reload:
    """What runs now, and how to read what should.

    Attributes:
        running: The settings in force.
    """

    def __init__(self, running: DeploymentConfig, read: Callable[[], DeploymentConfig], edge: Edge) -> None:
        self.running, self._read, self._edge = running, read, edge

    def __call__(self) -> bool:
        """Read everything anew and apply it, or say why not. True when it was applied."""
        serving = self.running.serving
        try:
            wanted = self._read()
            keys = None if serving.api_keys_file is None else read_keys(serving.api_keys_file)
        except ConfigurationError as error:
            log.warning("reload refused, the settings stay as they are", reason=str(error))
            return False
        if keys != self._edge.keys:
            self._edge.keys = keys
            log.info("reloaded", setting="serving.api_keys_file", keys=0 if keys is None else len(keys.names))
        applied = {}
        for path, takes in changes(self.running, wanted):
            if takes != "hot":
                log.warning("not applied: this change takes more than a reload", setting=path, takes=takes)
            elif path.startswith("serving."):
                name = path.removeprefix("serving.")
                applied[name] = getattr(wanted.serving, name)
                log.info("reloaded", setting=path, value=applied[name])
        if "rate_limit_per_minute" in applied:
            self._edge.rate_limit = RateLimit(wanted.serving.rate_limit_per_minute)
        if "log_level" in applied:
            logs.set_level(wanted.serving.log_level)
        self.running = self.running.model_copy(update={"serving": serving.model_copy(update=applied)})
        log.info("read again")
        return True


async def watch(paths: list[Path], changed: Callable[[], object]) -> None:
    """Call ``changed`` whenever one of the files becomes another or gets new content; for ever."""
    before = [_signature(path) for path in paths]
    while True:
        await asyncio.sleep(POLL_S)
        now = [_signature(path) for path in paths]
        if now != before:
            before = now
            changed()


def _signature(path: Path) -> tuple[int, ...]:
    """Of the file at the end of all symlinks; () while there is none."""
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
