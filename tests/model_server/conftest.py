"""A real server on a free port around an engine in memory, in the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for fake_engine: with import mode importlib tests are no package

import fake_engine

from model_server import listener
from model_server.app import create_app


@dataclass
class Served:
    """A running server, and its insides for what cannot be seen from outside."""

    url: str
    port: int
    engine: fake_engine.FakeEngine
    app: Any
    client: httpx2.AsyncClient

    @property
    def service(self):
        return self.app.state.service

    @property
    def edge(self):
        return self.app.state.edge

    def metric(self, name, **labels):
        """A sample's value, as Prometheus would read it."""
        return self.service.metrics.registry.get_sample_value(name, labels)

    async def ask(self, path, body=None, **more):
        if body is None:
            return await self.client.get(path, **more)
        return await self.client.post(path, json=body, **more)

    async def send(self, data):
        """Bytes as they are; returns reader and writer of the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        await writer.drain()
        return reader, writer


@pytest.fixture
async def serve():
    """Starts servers; the words after the engine are those of ``serving:``, for example max_queue=3."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(engine=None, *, keys=None, classifier=True, wait=True, **serving):
            engine = fake_engine.FakeEngine() if engine is None else engine
            config = fake_engine.environment(**serving)
            settings = fake_engine.settings() if classifier is True else None
            app = create_app(engine, config, classifier=settings, keys=keys)
            sock = socket.create_server(("127.0.0.1", 0))
            server = listener.listen(app, body_s=config.serving.request_timeout_s)
            task = asyncio.create_task(server.serve(sockets=[sock]))

            async def stop():
                server.should_exit = True
                await task

            stack.push_async_callback(stop)
            port = sock.getsockname()[1]
            url = f"http://127.0.0.1:{port}"
            client = await stack.enter_async_context(httpx2.AsyncClient(base_url=url, timeout=30, verify=False))
            while wait and app.state.service.info is None:
                await asyncio.sleep(0.001)
            return Served(url, port, engine, app, client)

        yield start


def events_of(text):
    """The events of a stream: parsed JSON, and "[DONE]" as it is."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


@pytest.fixture
def events():
    return events_of


async def until(condition, seconds=5.0):
    """Wait for what has to become true soon."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


@pytest.fixture(name="until")
def until_fixture():
    return until
