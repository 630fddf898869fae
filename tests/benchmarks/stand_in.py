"""Stands in for ``python -m model_server ENVIRONMENT serving.port=N`` at the wire: /ready after a moment, /classify.

The environment of a test says how slow and how wrong it is.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import uvicorn
import yaml
from fastapi import FastAPI, Response
from pydantic import BaseModel

settings = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))
port = int(next(word for word in sys.argv[2:] if word.startswith("serving.port=")).partition("=")[2])
started = time.monotonic()
app = FastAPI()


class Body(BaseModel):
    text: str


@app.get("/ready")
def ready(response: Response) -> dict[str, str]:
    if time.monotonic() - started < 1.0:
        response.status_code = 503
    return {"status": "ready"}


@app.post("/api/v1/classify")
async def classify(body: Body) -> dict[str, object]:
    await asyncio.sleep(settings["stand_in"]["service_ms"] / 1000)
    category = body.text.rpartition("#")[2]
    number = int(body.text.split()[1])
    if number % 100 < settings["stand_in"]["wrong_percent"]:
        category = "物流" if category != "物流" else "账单争议"
    return {"category": category, "confidence": 0.9, "probabilities": {category: 0.9}, "needs_review": False}


if "dies" in settings:
    sys.exit("cannot load the model: it is not there")
uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
