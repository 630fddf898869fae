from __future__ import annotations

import asyncio
import json
import math
import re

import fake_engine
import pytest
import structlog
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from otlp_collector import attributes

from model_server import recovery, tracing
from model_server.classification import write_settings
from model_server.engine import Prompt
from model_server.errors import EngineUnavailableError, ModelLoadError
from model_server.service import ScoreBatches
from monitoring.request_files import RequestLine, request_line

CATEGORIES = [
    "收费争议",
    "营销误导",
    "擅自开通",
    "网络/产品质量",
    "服务态度与时效",
    "合约/解约/携转",
    "退款退换",
    "物流/安装履约",
    "信息泄露与骚扰",
    "账户安全与欺诈",
    "系统渠道故障",
    "非投诉(咨询办理)",
]


async def test_inference_answers_with_the_fields_of_the_requirements(serve):
    served = await serve()

    answer = await served.ask("/api/v1/inference", {"text": "你好", "max_tokens": 6, "temperature": 0.5})

    assert answer.status_code == 200
    body = answer.json()
    assert body.keys() == {"result", "tokens_used", "response_time"}
    assert body["result"] == fake_engine.ANSWER[:6]
    assert body["tokens_used"] == 2 + 6
    assert 0 < body["response_time"] < 30
    assert served.engine.samplings[0].temperature == 0.5
    assert served.engine.prompts[0].messages[0].role == "user"


async def test_classify_gives_the_category_that_the_engine_scores_highest(serve):
    served = await serve()

    body = (await served.ask("/api/v1/classify", {"text": "宽带断了!!!"})).json()

    assert body["category"] == "网络/产品质量"
    assert body["confidence"] == pytest.approx(0.9)
    assert list(body["probabilities"]) == CATEGORIES
    assert math.isclose(sum(body["probabilities"].values()), 1)
    assert body["needs_review"] is False


async def test_classify_answers_several_texts_in_order(serve):
    served = await serve()

    body = (await served.ask("/api/v1/classify", {"texts": ["断了!!!", "多收钱", "骚扰电话!!!!!!!!"]})).json()

    assert [row["category"] for row in body["results"]] == ["网络/产品质量", "收费争议", "信息泄露与骚扰"]
    assert served.metric("qwen3_classifications_total", category="收费争议") == 1


async def test_classify_asks_for_review_below_the_threshold(serve):
    served = await serve()
    served.service.classifier = served.service.classifier.model_copy(update={"review_threshold": 0.95})

    assert (await served.ask("/api/v1/classify", {"text": "断了"})).json()["needs_review"] is True
    assert served.metric("qwen3_classification_reviews_total") == 1


async def test_classify_without_a_classifier_is_404(serve):
    served = await serve(classifier=False)

    answer = await served.ask("/api/v1/classify", {"text": "断了"})

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "task_not_supported"


async def test_an_engine_that_only_generates_gives_the_category_alone(serve):
    served = await serve(fake_engine.FakeEngine(tasks=["generate"], answer=" B"))

    body = (await served.ask("/api/v1/classify", {"text": "办套餐时没说要两年"})).json()

    assert body == {"category": "营销误导", "confidence": None, "probabilities": None, "needs_review": True}
    assert [turn.role for turn in served.engine.prompts[0].messages] == ["system", "user"]
    assert served.engine.samplings[0].temperature == 0


async def test_an_engine_that_says_no_letter_is_an_engine_error(serve):
    served = await serve(fake_engine.FakeEngine(tasks=["generate"], answer="好的"))

    answer = await served.ask("/api/v1/classify", {"text": "断了"})

    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "engine_error"


async def test_concurrent_classifications_share_batches(serve):
    """The first goes alone because the engine is free; the rest wait for it and then go together, 4 at a time."""
    served = await serve(fake_engine.FakeEngine(score_s=0.05))

    answers = await asyncio.gather(
        *(served.ask("/api/v1/classify", {"text": "断" + "!" * (n % 12)}) for n in range(16))
    )

    assert [answer.json()["category"] for answer in answers] == [CATEGORIES[n % 12] for n in range(16)]
    assert sum(served.engine.batches) == 16
    assert max(served.engine.batches) == 4
    assert len(served.engine.batches) <= 7


async def test_the_prompt_of_a_call_has_the_ids_of_the_whole_text(serve):
    """The instruction is tokenised once; what the engine gets must not differ from tokenising all of it."""
    served = await serve()
    settings = fake_engine.settings()
    text = settings.prompt_prefix + "客户:断了!" + settings.prompt_suffix

    prompt = await served.service._call_prompt("客户:断了!", settings)

    assert prompt.text == text
    assert prompt.token_ids == tuple(map(ord, text))
    assert prompt.tokens == len(text)


async def test_a_tokenizer_that_joins_over_the_seam_is_given_the_whole_text(serve):
    served = await serve()
    settings = fake_engine.settings()
    plain = served.engine.prompt

    def joining(content):
        prompt = plain(content)
        seam = settings.prompt_prefix[-1] + "客"
        ids = tuple(map(ord, prompt.text.replace(seam, "\0")))
        return Prompt(prompt.text, token_ids=ids, tokens=len(ids))

    served.engine.prompt = joining
    prompt = await served.service._call_prompt("客户:断了!", settings)

    assert prompt == joining(prompt.text)
    assert 0 in prompt.token_ids


async def test_a_failed_batch_fails_its_requests_and_no_others():
    engine = fake_engine.FakeEngine(score_s=0.01)
    await engine.load()
    batches = ScoreBatches(engine, range(12), 4, 10)
    prompts = [engine.prompt("!" * n) for n in range(4)]
    engine.state = "dead"
    failed = await asyncio.gather(*(batches.score([prompt]) for prompt in prompts), return_exceptions=True)
    engine.state = "ready"

    [row] = await batches.score(prompts[2:3])

    assert [type(error) for error in failed] == [EngineUnavailableError] * 4
    assert row.index(max(row)) == 2
    assert (batches.waiting, batches.running) == (0, 0)


async def test_the_model_is_described(serve):
    served = await serve(fake_engine.FakeEngine(kv_tokens=9000))

    body = (await served.ask("/api/v1/model")).json()

    assert body["name"] == "qwen3-test"
    assert body["engine"] == "openvino"
    assert body["kv_tokens"] == 9000
    assert body["slots"] == 4
    assert body["categories"] == CATEGORIES
    assert body["phases_s"] == {"process": 0.1, "first_token": 0.2}
    assert body["loaded_since"].endswith("+00:00")


async def test_while_the_model_loads_the_server_is_alive_but_not_ready(serve):
    served = await serve(fake_engine.FakeEngine(load_s=0.3), wait=False)

    health, ready = await served.ask("/health"), await served.ask("/ready")
    refused = await served.ask("/api/v1/inference", {"text": "你好"})

    assert (health.status_code, health.json()["status"]) == (200, "starting")
    assert ready.status_code == 503
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
    await asyncio.sleep(0.4)
    assert (await served.ask("/ready")).status_code == 200


async def test_a_model_that_cannot_be_loaded_is_told_by_health(serve, until):
    engine = fake_engine.FakeEngine()
    engine.load_error = ModelLoadError("memory", "truncated")
    served = await serve(engine, wait=False)
    await until(lambda: served.service.failure)

    health = await served.ask("/health")

    assert (health.status_code, health.json()["status"]) == (503, "failed")
    assert "truncated" in health.json()["reason"]


@pytest.mark.parametrize(("state", "told"), [("stalled", "stalled"), ("dead", "dead"), ("starting", "restarting")])
async def test_health_tells_a_lost_engine(serve, state, told):
    served = await serve()
    served.engine.state = state

    health, ready = await served.ask("/health"), await served.ask("/ready")

    assert (health.status_code, health.json()["status"]) == (503, told)
    assert ready.status_code == 503


async def test_an_engine_that_lost_slots_is_given_less(serve, until):
    served = await serve(fake_engine.FakeEngine(slots=4, kv_tokens=4000))
    served.engine.slots = 2

    await until(lambda: served.service.admission.slots == 2)

    assert served.service.admission.kv_tokens == 2000


async def test_when_the_fallback_comes_up_its_own_labels_are_asked_for(serve, tmp_path, monkeypatch):
    """Its labels are other tokens, in another order; asked for the first model's it would still answer."""
    monkeypatch.setattr(recovery, "BACKOFF_S", 0.001)
    settings = fake_engine.settings()
    letters = list(reversed(settings.labels))
    write_settings(
        settings.model_copy(
            update={
                "labels": {letter: settings.labels[letter] for letter in letters},
                "label_ids": {letter: 500 + number for number, letter in enumerate(letters)},
            }
        ),
        tmp_path,
    )

    def build(source, slots):
        engine = fake_engine.FakeEngine()
        engine.source = source
        if source == "memory":
            engine.load_error = ModelLoadError("memory", "truncated")
        return engine

    served = await serve(recovery.RecoveringEngine(build, ["memory", str(tmp_path)], 4))
    decision = (await served.ask("/api/v1/classify", {"text": "断了!!"})).json()
    model = (await served.ask("/api/v1/model")).json()

    assert decision["category"] == CATEGORIES[-3]
    assert model["source"] == str(tmp_path)
    assert model["categories"] == CATEGORIES[::-1]


async def test_request_ids_are_taken_over_or_made(serve):
    served = await serve()

    taken = await served.ask("/health", headers={"x-request-id": "abc-123"})
    made = await served.ask("/health")
    broken = await served.ask("/health", headers={"x-request-id": "a b\t" + "x" * 500})

    assert taken.headers["x-request-id"] == "abc-123"
    assert len(made.headers["x-request-id"]) == 32
    assert len(broken.headers["x-request-id"]) == 32


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("DELETE", "/api/v1/classify", 405)])
async def test_what_is_not_there_is_told_in_the_same_shape(serve, method, path, status):
    served = await serve()

    answer = await served.client.request(method, path)

    assert answer.status_code == status
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}


async def test_metrics_count_requests_by_endpoint_and_status(serve):
    served = await serve()
    await served.ask("/api/v1/inference", {"text": "你好", "max_tokens": 5})
    await served.ask("/api/v1/inference", {"text": ""})

    text = (await served.ask("/metrics")).text

    assert 'qwen3_inference_requests_total{endpoint="inference",status="200"} 1.0' in text
    assert 'qwen3_inference_requests_total{endpoint="inference",status="400"} 1.0' in text
    assert 'qwen3_inference_duration_seconds_count{endpoint="inference"} 1.0' in text
    assert "qwen3_generated_tokens_total 5.0" in text
    assert "qwen3_prompt_tokens_total 2.0" in text
    assert "qwen3_time_to_first_token_seconds_count 1.0" in text
    assert "qwen3_queue_wait_seconds_count 1.0" in text
    assert "qwen3_active_connections 0.0" in text


async def test_metrics_move_to_their_own_port(serve):
    served = await serve(metrics_port=0)

    assert (await served.ask("/metrics")).status_code == 404


async def test_logs_carry_lengths_and_no_text(serve):
    served = await serve()
    with structlog.testing.capture_logs() as lines:
        await served.ask("/api/v1/inference", {"text": "我的密码是天王盖地虎", "max_tokens": 5})

    [line] = [line for line in lines if line["event"] == "request"]
    assert (line["prompt_length"], line["response_length"], line["tokens"]) == (10, 5, 5)
    assert line["status"] == 200
    told = json.dumps(lines, ensure_ascii=False)
    assert "天王" not in told
    assert fake_engine.ANSWER[:3] not in told


async def test_logs_carry_masked_text_where_the_operator_asks_for_it(serve):
    served = await serve(record_text=True)
    with structlog.testing.capture_logs() as lines:
        await served.ask("/api/v1/inference", {"text": "打我电话13812345678", "max_tokens": 5})

    [line] = [line for line in lines if line["event"] == "request"]
    assert "打我电话" in line["prompt_masked"]
    assert "13812345678" not in line["prompt_masked"]
    assert line["response_masked"] == fake_engine.ANSWER[:5]


async def test_each_request_ends_as_a_line_of_the_daily_file(serve):
    served = await serve()
    lines = []
    served.edge._on_request = lambda at, row: lines.append({"timestamp": at.isoformat()} | row)
    await served.ask("/api/v1/inference", {"text": "你好", "max_tokens": 5}, headers={"x-request-id": "r-1"})
    one = (await served.ask("/api/v1/classify", {"text": "宽带断了"})).json()
    await served.ask("/api/v1/classify", {"texts": ["宽带断了", "扣费错了"]})
    await served.ask("/api/v1/inference", {"text": 5})
    await served.ask("/health")

    found = [request_line(json.dumps(line).encode()) for line in lines]
    assert None not in found
    generated, classified, several, refused = found
    assert (generated.status, generated.error, generated.status_code) == ("success", None, 200)
    assert (generated.model, generated.endpoint) == (served.service.config.model_name, "inference")
    assert (generated.prompt_length, generated.response_length, generated.generated_tokens) == (2, 5, 5)
    assert generated.request_id == "r-1"
    assert 0 < generated.first_token_ms <= generated.latency_ms
    assert generated.tokens_used > generated.generated_tokens
    assert (classified.category, classified.confidence) == (one["category"], one["confidence"])
    assert (several.category, several.prompt_length) == (None, 8)
    assert (refused.status, refused.status_code, refused.prompt_length) == ("error", 400, 0)
    assert refused.error == "invalid_request"
    assert {"timestamp", *lines[0]} <= set(RequestLine.model_fields), "nothing is written that nobody reads"


async def test_a_bug_is_an_error_in_the_same_shape_and_is_logged(serve):
    served = await serve()
    served.engine.prompt = lambda _: 1 / 0

    with structlog.testing.capture_logs() as lines:
        answer = await served.ask("/api/v1/inference", {"text": "你好"})

    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert [line["event"] for line in lines] == ["bug", "request"]


async def test_the_page_of_the_api_names_bodies_examples_and_errors(serve):
    served = await serve()

    page = (await served.ask("/openapi.json")).json()

    for path in ("/api/v1/inference", "/api/v1/classify", "/v1/chat/completions", "/v1/completions"):
        operation = page["paths"][path]["post"]
        reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        schema = page["components"]["schemas"][reference.rpartition("/")[2]]
        assert schema["examples"]
        assert schema["additionalProperties"] is False
        assert set(operation["responses"]) == {"200", "400", "401", "404", "413", "429", "500", "503", "504"}
        assert operation["responses"]["429"]["content"]["application/json"]["example"]["error"]["code"]
    assert "422" not in json.dumps(page)


async def test_a_request_leaves_the_spans_of_its_stages(serve, collector):
    tracing.configure(collector.url)
    served = await serve()

    trace = "0af7651916cd43dd8448eb211c80319c"
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
        await served.ask("/v1/chat/completions", CHAT | {"stream": True}, headers=headers)
    tracing.shutdown(10)

    spans = {span.name: span for span in collector.spans}
    assert spans.keys() == {"request", *tracing.STAGES}
    assert {span.trace_id.hex() for span in spans.values()} == {trace}
    assert all(spans[stage].parent_span_id == spans["request"].span_id for stage in tracing.STAGES)
    found = attributes(spans["request"])
    assert found["gen_ai.request.model"] == "qwen3-test"
    assert (found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"]) == (
        attributes(spans["prefill"])["tokens"],
        attributes(spans["decode"])["tokens"],
    )
    assert found["http.response.status_code"] == 200
    waited_ns = spans["queue"].end_time_unix_nano - spans["queue"].start_time_unix_nano
    assert found["queue_s"] == pytest.approx(waited_ns / 1e9, abs=1e-5)
    assert lines[-1]["trace_id"] == trace


@pytest.mark.parametrize(
    ("engine", "body", "serving", "stage"),
    [
        ({"fail_after": 2}, {"max_tokens": 9}, {}, "decode"),
        ({"token_s": 5}, {}, {"request_timeout_s": 0.2}, "prefill"),
        ({}, {"messages": [{"role": "user", "content": "好" * 3000}]}, {"max_body_bytes": 1024}, "receive"),
    ],
)
async def test_an_error_is_recorded_in_the_stage_where_it_arises(serve, collector, engine, body, serving, stage):
    tracing.configure(collector.url)
    served = await serve(fake_engine.FakeEngine(**engine), **serving)
    answer = await served.ask("/v1/chat/completions", CHAT | body)
    tracing.shutdown(10)

    assert answer.status_code >= 400
    failed = {span.name: span for span in collector.spans if span.status.code == Status.STATUS_CODE_ERROR}
    said = answer.json()["error"]["code"]
    assert {name: span.status.message for name, span in failed.items()} == {stage: said, "request": said}
    assert {attributes(span)["error.type"] for span in failed.values()} == {said}


async def test_a_classification_leaves_its_wait_and_its_pass(serve, collector):
    tracing.configure(collector.url)
    served = await serve()
    await served.ask("/api/v1/classify", {"texts": ["断了", "多收钱"]})
    tracing.shutdown(10)

    spans = {span.name: span for span in collector.spans}
    assert spans.keys() == {"request", "receive", "queue", "prefill"}
    assert attributes(spans["prefill"])["batch"] == 2
    assert attributes(spans["prefill"])["tokens"] == attributes(spans["request"])["gen_ai.usage.input_tokens"] > 0
    assert spans["queue"].end_time_unix_nano == pytest.approx(spans["prefill"].start_time_unix_nano, abs=1e6)


CHAT = {"model": "qwen3-test", "messages": [{"role": "user", "content": "你好"}], "max_tokens": 3}


async def test_the_documentation_page_needs_no_other_server(serve):
    served = await serve()

    page = (await served.client.get("/docs")).text
    assets = re.findall(r'(?:src|href)="([^"]+)"', page)

    assert len(assets) >= 3
    assert [asset for asset in assets if "//" in asset] == []
    for asset in assets:
        assert (await served.client.get(asset)).status_code == 200
