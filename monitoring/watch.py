"""The alerts without Prometheus: reads a server's /metrics and evaluates the rules of ``alerts.yml`` itself.

    python -m monitoring.watch [ENVIRONMENT.yml] [--json] [url=URL[,URL]] [every_s=15] [for_s=SECONDS] [key=value ...]

    python -m monitoring.watch environments/local.yml          until Ctrl-C
    python -m monitoring.watch environments/local.yml for_s=60 every_s=5 && echo quiet

ENVIRONMENT says where the server is and which thresholds differ; further words override it (``alerts.low_qps=1``).
Without it: http://127.0.0.1:8000 and the thresholds of alerts.yml. The expressions are those that Prometheus gets from
``monitoring.render``, text for text; what came before the start is not known, as to a Prometheus that just began, so
that a burn rate over three days is one over the time watched until then.

Each alert is printed when it begins to fire and when it resolves (``--json``: one object a line). The last line is a
JSON object. Exit: 0 nothing fired, 1 something did, 2 usage, 4 no server ever answered.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import httpx2
import promql_parser as promql
from prometheus_client.parser import text_string_to_metric_families
from pydantic import Field, field_validator

import runconfig
from model_server import deployment
from model_server.errors import ConfigurationError
from monitoring import alerts, render
from monitoring.expressions import ExpressionError, evaluate, nameless, parse, selectors
from monitoring.series import Labels, Store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

JOB = "qwen3-inference"
"""The label that Prometheus gives our servers (roles, chart, local stack)."""

Samples = dict[tuple[str, Labels], float]


class WatchSettings(runconfig.RunConfig):
    """Words of the command line that are not the environment's."""

    url: str | None = Field(default=None, pattern=r"^https?://")
    """Servers to read, separated by commas; None: the environment's."""
    every_s: float = Field(default=15, ge=0.1, le=30)
    """Between two readings; the shortest rate window, a minute, needs two of them."""
    for_s: float | None = Field(default=None, gt=0)
    """How long to watch; None: until it is ended."""

    @field_validator("url")
    @classmethod
    def _without_password(cls, url: str | None) -> str | None:
        if url is not None and "@" in url:
            raise ValueError("a URL must not hold a password: it is written down")
        return url


@dataclass(frozen=True, slots=True)
class Event:
    """An alert that began to fire, or that is over."""

    time: str
    """UTC, ISO 8601."""
    state: Literal["firing", "resolved"]
    alert: str
    severity: alerts.Severity
    labels: Mapping[str, str]
    """Whose: job, instance, directory."""
    description: str
    """Value and threshold, for people; empty for an absence."""
    summary: str
    summary_zh: str
    runbook: str


@dataclass(frozen=True, slots=True)
class _Rule:
    name: str
    expr: promql.Expr
    hold_s: float
    severity: alerts.Severity
    annotations: Mapping[str, str]
    row: alerts.Alert | None
    """None: an absence."""


class Rules:
    """The rules that Prometheus gets, over a store of its own."""

    def __init__(self, rows: Mapping[str, alerts.Alert], runbooks: str = render.RUNBOOKS) -> None:
        """
        Raises:
            ExpressionError: An alert that only Prometheus can evaluate.
        """
        [group] = render.rules(rows, runbooks)["groups"]
        self._records = [(rule["record"], parse(rule["expr"])) for rule in group["rules"] if "record" in rule]
        self._alerts = [
            _Rule(
                rule["alert"],
                parse(rule["expr"]),
                alerts.seconds(rule["for"]),
                rule["labels"]["severity"],
                rule["annotations"],
                rows.get(rule["alert"]),
            )
            for rule in group["rules"]
            if "alert" in rule
        ]
        exprs = [expr for _, expr in self._records] + [rule.expr for rule in self._alerts]
        self.store = Store(selector for expr in exprs for selector in selectors(expr))
        self._since: dict[tuple[str, Labels], float] = {}
        self._firing: dict[tuple[str, Labels], Event] = {}

    @property
    def firing(self) -> list[Event]:
        """What fires now, as it was when it began."""
        return list(self._firing.values())

    def evaluate(self, at: float) -> list[Event]:
        """Record the signals at Unix time ``at`` and say what changed."""
        for record, expr in self._records:
            value = evaluate(expr, self.store, at)
            assert isinstance(value, dict)
            self.store.put(at, {(record, nameless(labels)): each for labels, each in value.items()}, record)
        return [event for rule in self._alerts for event in self._judge(rule, at)]

    def _judge(self, rule: _Rule, at: float) -> list[Event]:
        found = evaluate(rule.expr, self.store, at)
        assert isinstance(found, dict)
        values = {(rule.name, nameless(labels)): value for labels, value in found.items()}
        events = []
        for key, value in values.items():
            since = self._since.setdefault(key, at)
            if at - since >= rule.hold_s and key not in self._firing:
                self._firing[key] = _event(rule, "firing", key[1], at, value)
                events.append(self._firing[key])
        for key in [key for key in self._since if key[0] == rule.name and key not in values]:
            del self._since[key]
            if self._firing.pop(key, None) is not None:
                events.append(_event(rule, "resolved", key[1], at, None))
        return events


def _event(rule: _Rule, state: Literal["firing", "resolved"], labels: Labels, at: float, value: float | None) -> Event:
    row, description = rule.row, ""
    if row is not None and value is not None:
        limit = f"fires {row.compare} {row.threshold:g} {row.unit} for {row.hold}"
        description = f"{value * row.per_base:.4g} {row.unit}, {limit}"
    return Event(
        time=datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds"),
        state=state,
        alert=rule.name,
        severity=rule.severity,
        labels=dict(sorted(labels)),
        description=description,
        summary=rule.annotations["summary"],
        summary_zh=rule.annotations["summary_zh"],
        runbook=rule.annotations["runbook_url"],
    )


class Watch:
    """Servers that are read again and again, and the rules over what they say."""

    def __init__(self, urls: Sequence[str], rules: Rules, client: httpx2.Client) -> None:
        """Args: urls: Of servers, without /metrics."""
        self.rules, self._client = rules, client
        self._targets = {url: frozenset({("job", JOB), ("instance", httpx2.URL(url).netloc.decode())}) for url in urls}
        self.answered = 0
        """Readings that were answered."""

    def step(self, at: float) -> list[Event]:
        """Read every server once and evaluate; ``at`` is the Unix time."""
        for url, labels in self._targets.items():
            read = self._read(url)
            self.answered += read is not None
            samples = {(name, own | labels): value for (name, own), value in (read or {}).items()}
            samples["up", labels] = float(read is not None)
            self.rules.store.put(at, samples, url)
        return self.rules.evaluate(at)

    def _read(self, url: str) -> Samples | None:
        """What it exposes; None where nothing or something else answers."""
        try:
            answer = self._client.get(f"{url.rstrip('/')}/metrics").raise_for_status()
            return {
                (sample.name, frozenset(sample.labels.items())): sample.value
                for family in text_string_to_metric_families(answer.text)
                for sample in family.samples
            }
        except (httpx2.HTTPError, ValueError):
            return None


def urls_of(config: deployment.DeploymentConfig) -> list[str]:
    """Where the server of an environment tells its metrics, on this machine."""
    serving = config.serving
    host = "127.0.0.1" if serving.host in ("0.0.0.0", "::") else serving.host  # noqa: S104  compared, not bound
    port = serving.port if serving.metrics_port is None else serving.metrics_port
    return [f"http://{f'[{host}]' if ':' in host else host}:{port}"]


def line(event: Event) -> str:
    """For people, one alert in two lines."""
    whose = " ".join(f"{name}={value}" for name, value in event.labels.items() if name != "job")
    said = "  ".join(filter(None, (event.time, f"{event.state.upper():8}", f"{event.severity:8}", event.alert, whose)))
    more = f"{event.summary} / {event.summary_zh}" + (f": {event.description}" if event.description else "")
    return f"{said}\n    {more}\n    {event.runbook}"


def _run(watch: Watch, settings: WatchSettings, *, as_json: bool) -> int:
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    fired: dict[str, int] = {}
    steps, began, began_at = 0, time.monotonic(), time.time()
    while not ended.is_set():
        passed = time.monotonic() - began
        if settings.for_s is not None and passed > settings.for_s:
            break
        unanswered = watch.answered == 0
        for event in watch.step(began_at + passed):  # a clock that is set moves nothing
            if event.state == "firing":
                fired[event.alert] = fired.get(event.alert, 0) + 1
            print(json.dumps(asdict(event), ensure_ascii=False) if as_json else line(event), flush=True)
        if steps == 0 and watch.answered == 0:
            print("no server answers yet; reading on", file=sys.stderr)
        elif steps and unanswered and watch.answered:
            print("a server answers", file=sys.stderr)
        steps += 1
        ended.wait(max(0.0, began + steps * settings.every_s - time.monotonic()))
    firing = [event.alert for event in watch.rules.firing]
    print(json.dumps({"evaluations": steps, "answered": watch.answered, "fired": fired, "firing": firing}))
    return 4 if watch.answered == 0 else int(bool(fired))


def main(words: Sequence[str]) -> int:
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return 0
    flags = {word for word in words if word.startswith("-")}
    environments = [word for word in words if "=" not in word and word not in flags]
    own = [word for word in words if word.split("=")[0] in WatchSettings.model_fields]
    overrides = [word for word in words if "=" in word and word not in own]
    if flags - {"--json"} or len(environments) > 1 or (overrides and not environments):
        print(f"give one environment file and key=value words, got {' '.join(words)}; see --help", file=sys.stderr)
        return 2
    try:
        settings = runconfig.load(WatchSettings, None, own)
        urls, thresholds = ["http://127.0.0.1:8000"], MappingProxyType[str, float]({})
        if environments:
            config = deployment.load(environments[0], overrides)
            urls, thresholds = urls_of(config), MappingProxyType(config.alerts)
        urls = urls if settings.url is None else settings.url.split(",")
        rules = Rules(alerts.load(thresholds))
    except (runconfig.ConfigError, ConfigurationError, ExpressionError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"watching {', '.join(urls)} every {settings.every_s:g} s; Ctrl-C ends it", file=sys.stderr)
    with contextlib.closing(httpx2.Client(trust_env=False, timeout=min(settings.every_s, 10.0))) as client:
        return _run(Watch(urls, rules, client), settings, as_json="--json" in flags)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
