from __future__ import annotations

import asyncio
import logging

import fake_engine
import pytest
import structlog

from model_server.auth import RateLimit, read_keys
from model_server.errors import ConfigurationError
from model_server.reload import Reload, watch


class Edge:
    """The two fields of app.Edge that a reload replaces."""

    def __init__(self, keys=None):
        self.keys, self.rate_limit = keys, RateLimit(None)


@pytest.fixture(autouse=True)
def _level():
    before = logging.getLogger().level
    yield
    logging.getLogger().setLevel(before)


def test_hot_settings_are_applied(tmp_path):
    path = tmp_path / "keys"
    path.write_text("old-key")
    before = fake_engine.environment(api_keys_file=str(path))
    after = fake_engine.environment(api_keys_file=str(path), rate_limit_per_minute=7, log_level="WARNING")
    edge = Edge(read_keys(path))
    reload = Reload(before, lambda: after, edge)
    path.write_text("new-key")

    assert reload()

    assert edge.rate_limit.per_minute == 7
    assert edge.keys.name_of(b"Bearer new-key")
    assert logging.getLogger().level == logging.WARNING
    assert reload.running.serving.rate_limit_per_minute == 7


def test_counts_survive_a_reload_that_does_not_touch_the_rate():
    edge = Edge()
    before = edge.rate_limit
    config = fake_engine.environment()

    Reload(config, lambda: config, edge)()

    assert edge.rate_limit is before


def test_what_takes_more_than_a_reload_is_named_and_not_applied():
    before = fake_engine.environment(max_queue=10)
    after = fake_engine.environment(max_queue=20).model_copy(update={"model_version": "2"})
    reload = Reload(before, lambda: after, Edge())

    with structlog.testing.capture_logs() as lines:
        assert reload()

    told = {(line["setting"], line["takes"]) for line in lines if "takes" in line}
    assert told == {("serving.max_queue", "restart"), ("model_version", "replace")}
    assert reload.running == before


def test_settings_that_cannot_be_used_are_refused_with_the_reason():
    def read():
        raise ConfigurationError("serving.portt: unknown key")

    edge = Edge()
    config = fake_engine.environment(rate_limit_per_minute=5)
    reload = Reload(config, read, edge)

    with structlog.testing.capture_logs() as lines:
        assert not reload()

    assert "serving.portt" in lines[0]["reason"]
    assert reload.running == config


def test_a_key_file_that_became_unusable_leaves_the_old_keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text("old-key")
    config = fake_engine.environment(api_keys_file=str(path))
    edge = Edge(read_keys(path))
    path.write_text("")

    assert not Reload(config, lambda: config, edge)()

    assert edge.keys.name_of(b"Bearer old-key")


async def test_files_are_watched_through_swapped_symlinks(tmp_path, until):
    """As Kubernetes does it: the name stays, the directory behind a symlink is exchanged."""
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "keys").write_text(f"key-{version}")
    (tmp_path / "data").symlink_to("1")
    seen = []
    task = asyncio.create_task(watch([tmp_path / "data" / "keys"], lambda: seen.append(1)))
    await asyncio.sleep(0.1)

    (tmp_path / "swap").symlink_to("2")
    (tmp_path / "swap").replace(tmp_path / "data")
    await until(lambda: len(seen) == 1)
    (tmp_path / "2" / "keys").unlink()
    await until(lambda: len(seen) == 2)

    task.cancel()
