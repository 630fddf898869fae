"""Stands in for ``python -m model_server ENVIRONMENT serving.port=N`` at the wire, and knows what its settings do:
``max_batch_size`` slots, 10 ms a call; ``kv_cache_bits`` 8 halves that and puts every fifth call into the wrong
category; ``max_sequence_length`` 16 cannot be served. It does not look at others.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvicorn
import yaml
from fastapi import FastAPI
from pydantic import BaseModel

settings = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))["optimization_settings"]
port = int(next(word for word in sys.argv[2:] if word.startswith("serving.port=")).partition("=")[2])
slots = asyncio.Semaphore(settings["max_batch_size"])
careless = settings["kv_cache_bits"] == 8
service_s = 0.005 if careless else 0.010
app = FastAPI()


class Body(BaseModel):
    text: str


@app.get("/ready")
def ready() -> dict[str, str]:
    return {"status": "ready"}


@app.post("/api/v1/classify")
async def classify(body: Body) -> dict[str, object]:
    async with slots:
        await asyncio.sleep(service_s)
    category = body.text.rpartition("#")[2]
    if careless and int(body.text.split()[1]) % 5 == 0:
        category = "物流" if category != "物流" else "账单争议"
    return {"category": category, "confidence": 0.9, "probabilities": {category: 0.9}, "needs_review": False}


if settings["max_sequence_length"] == 16:
    sys.exit("the KV pool is too small")
uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
