"""LMDeploy 0.18's real API server on a machine without a GPU: only what computes tokens is replaced.

Run by LMDeploy's own Python in place of ``lmdeploy_child.py``, which it runs after the replacement. Uses private
names of LMDeploy 0.18.0. Environment:

CPU_ENGINE=zmq      the engine in LMDeploy's own child process behind ZeroMQ, as the PyTorch backend runs it;
                    otherwise inside the API process, as TurboMind runs
CPU_ENGINE_FAULTS   a directory: a file HANG there stops health probes from answering, DEAD ends the engine loop
CPU_ENGINE_STEP_S   seconds between tokens
"""

from __future__ import annotations

import asyncio
import os
import runpy
import time
from pathlib import Path

import lmdeploy.pytorch.engine as pytorch_engine
import torch
from lmdeploy.messages import EngineEvent, EngineOutput, EventType, RequestMetrics, ResponseType, ScheduleMetrics
from lmdeploy.pytorch.backends.default.awq_modules import dequantize_gemm
from lmdeploy.pytorch.engine.mp_engine import build_mp_engine
from lmdeploy.serve.core import AsyncEngine
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

FAULTS = Path(os.environ.get("CPU_ENGINE_FAULTS", "/nonexistent"))
STEP_S = float(os.environ.get("CPU_ENGINE_STEP_S", "0"))
LAUNCHER = Path(__file__).parents[3] / "model_server" / "engines" / "lmdeploy_child.py"


class Instance:
    """What LMDeploy calls a handle: one request at a time."""

    def __init__(self, engine):
        self.engine, self.cancelled = engine, False

    async def async_cancel(self, session_id):
        self.cancelled = True

    async def async_end(self, session_id):
        pass

    async def async_stream_infer(self, session_id, input_ids, gen_config=None, notify_add_msg_func=None, **_):
        if notify_add_msg_func is not None:
            told = notify_add_msg_func()
            if hasattr(told, "__await__"):
                await told
        self.cancelled = False
        self.engine.active += 1
        try:
            async for output in self.tokens(input_ids, gen_config):
                yield output
        finally:
            self.engine.active -= 1

    async def tokens(self, input_ids, config):
        random = torch.Generator().manual_seed(config.random_seed or 0)
        events = [EngineEvent.new_event(EventType.QUEUED), EngineEvent.new_event(EventType.SCHEDULED)]
        cache, new = None, torch.tensor([input_ids])
        for number in range(1, config.max_new_tokens + 1):
            if self.engine.dead:
                yield EngineOutput(ResponseType.ENGINE_STOP_ERROR, [])
                return
            if self.cancelled:
                yield EngineOutput(ResponseType.CANCEL, [])
                return
            with torch.inference_mode():
                out = self.engine.model(new, past_key_values=cache, use_cache=True)
            cache, logits = out.past_key_values, out.logits[0, -1].float()
            raw = logits.log_softmax(-1)
            if config.top_k == 1:
                token = int(logits.argmax())
            else:
                token = int(torch.multinomial((logits / config.temperature).softmax(-1), 1, generator=random))
            new = torch.tensor([[token]])
            self.engine.ticks += 1
            ended = not config.ignore_eos and token in (config.stop_token_ids or ())
            last = ended or number == config.max_new_tokens
            logprobs = None
            if config.logprobs:
                top = raw.topk(min(config.logprobs, len(raw)))
                row = dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))
                logprobs = [row | {token: float(raw[token])}]
            yield EngineOutput(
                ResponseType.FINISH if last else ResponseType.SUCCESS,
                [token],
                logprobs=logprobs,
                req_metrics=RequestMetrics(token_timestamp=time.time(), engine_events=events),
            )
            events = []
            if last:
                return
            await asyncio.sleep(STEP_S)


def load(path):
    """The model in float32; 4-bit weights as LMDeploy's own arithmetic for other devices than CUDA reads them."""
    config = AutoConfig.from_pretrained(path)
    if getattr(config, "quantization_config", None) is None:
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    quantisation = config.quantization_config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tensors = load_file(Path(path) / "model.safetensors")
    for name in [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]:
        packed = [tensors.pop(f"{name}.{part}") for part in ("qweight", "qzeros", "scales")]
        weight = dequantize_gemm(*packed, quantisation["bits"], quantisation["group_size"])
        tensors[f"{name}.weight"] = weight.t().float()
    report = model.load_state_dict(tensors, strict=False)
    assert set(report.missing_keys) <= {"lm_head.weight"}, report  # tied to the embedding
    assert not report.unexpected_keys, report
    return model.eval()


class CpuEngine:
    def __init__(self, path, config):
        self.engine_config = config
        self.model = load(path)
        self.active, self.ticks, self.dead = 0, 0, False

    def create_instance(self, *_, **__):
        return Instance(self)

    def get_engine_config(self):
        return self.engine_config

    def start_loop(self):
        return True

    def get_schedule_metrics(self):
        return ScheduleMetrics(active_seqs=self.active, waiting_seqs=0, cache_usage=0.0, scheduler_tick=self.ticks)

    def get_local_health_status(self):
        return {"alive": True, "message": "", "schedule_metrics": self.get_schedule_metrics()}

    async def get_health_status(self):
        if (FAULTS / "HANG").exists():
            await asyncio.sleep(3600)
        if (FAULTS / "DEAD").exists():
            self.dead = True
            return {"alive": False, "message": "engine loop dead", "schedule_metrics": None}
        return self.get_local_health_status()

    def end_session(self, _):
        return True

    async def wait_tasks(self):
        pass

    async def sleep(self, _):
        pass

    def wakeup(self, _):
        pass

    def close(self):
        pass


def from_pretrained(path, engine_config=None, **others):
    if engine_config.enable_mp_engine and os.environ.get("CPU_ENGINE") == "zmq":
        return build_mp_engine(
            backend=engine_config.mp_engine_backend, model_path=path, engine_config=engine_config, **others
        )
    return CpuEngine(path, engine_config)


def build(self, model_path, backend_config=None, speculative_config=None, trust_remote_code=False, **_):
    return from_pretrained(
        model_path,
        engine_config=backend_config,
        speculative_config=speculative_config,
        trust_remote_code=trust_remote_code,
    )


pytorch_engine.Engine.from_pretrained = staticmethod(from_pretrained)
AsyncEngine._build_pytorch = build

if __name__ == "__main__":  # the engine process of the zmq variant imports this file for the replacements alone
    runpy.run_path(str(LAUNCHER))["main"]()
