"""What the Helm chart takes from the Python records, written into ``infra/chart/``.

    python -m infra.chart_schema

``values.yaml`` has the defaults and their documentation, ``values.schema.json`` what each key may be,
``files/hot.json`` the keys whose change leaves the pods, ``files/rules.json`` the alerts with places for thresholds,
``files/dashboards`` Grafana's dashboards.
The chart's values are an environment file, with ``cluster`` and the keys beside it.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from infra.cluster import ClusterSettings, Name
from model_server import deployment
from model_server.deployment import DeploymentConfig
from monitoring import alerts, dashboards, render

CHART = Path(__file__).with_name("chart")

_OF_THE_RELEASE = ("namespace", "create_namespace")
"""Keys of :class:`ClusterSettings` that Helm has its own words for: ``-n`` and ``--create-namespace``."""

_HEAD = """\
Made by python -m infra.chart_schema from model_server/deployment.py and infra/cluster.py; changes belong there.
The rest of the keys is an environment: helm install qwen3 infra/chart -f environments/production.yml
--set image=NAME@sha256:DIGEST --set-file api_keys=FILE"""


class Values(DeploymentConfig):
    """An environment, the cluster it goes to, and the keys that its callers use."""

    cluster: ClusterSettings = Field(default_factory=ClusterSettings)
    """The site. Its namespace is the release's; the chart makes none."""
    api_keys: str | None = Field(default=None, min_length=1)
    """Keys, one a line, ``key`` or ``name:key``, for a Secret; Helm keeps them in the release's own Secret too."""
    existing_secret: Name | None = None
    """Name of a Secret that is there, with the keys under ``api_keys``; instead of the former."""


def schema() -> dict[str, Any]:
    """JSON schema of the values, with the defaults filled in."""
    found = Values.model_json_schema()
    sections = found.pop("$defs")
    for name in _OF_THE_RELEASE:
        del sections["ClusterSettings"]["properties"][name]
    for section in (found, *sections.values()):
        _tighten(section)
    # Helm gives it to a chart that another one depends on.
    found["properties"]["global"] = {"type": "object", "description": "Helm's own; not read here."}
    # Draft 7 is the newest that all versions of Helm 3 know.
    return {"$schema": "http://json-schema.org/draft-07/schema#", **found, "$defs": sections}


def _tighten(section: dict[str, Any]) -> None:
    """Require what may not be null: values.yaml has the defaults, so it is missing only after somebody wrote null."""
    properties = section["properties"]
    section["required"] = [name for name, each in properties.items() if {"type": "null"} not in each.get("anyOf", [])]
    for each in properties.values():
        each.pop("change", None)
        for kind in each.get("anyOf", [each]):
            kind.pop("format", None)  # "path", which no validator knows


def values() -> str:
    """``values.yaml``: every key with what it means, and its default where there is one."""
    return "\n".join([*_comment(_HEAD, ""), "", *_values(Values, "", ()), ""])


def _values(model: type[BaseModel], indent: str, without: tuple[str, ...]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if name in without:
            continue
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _comment(field.description or kind.__doc__ or "", indent)
            yield f"{indent}{name}:"
            yield from _values(kind, indent + "  ", _OF_THE_RELEASE if kind is ClusterSettings else ())
            continue
        yield from _comment(field.description or "", indent)
        if field.is_required():
            yield f"{indent}# {name}: (required)"
        else:
            default = field.get_default(call_default_factory=True)
            yield f"{indent}{name}: {json.dumps(default)}"


def _comment(text: str, indent: str) -> list[str]:
    lines = textwrap.wrap(" ".join(text.replace("``", "`").split()), 110 - len(indent))
    return [f"{indent}# {line}" for line in lines]


def hot() -> list[str]:
    """Paths of the keys that running servers take over."""
    return [path for path in _paths(DeploymentConfig, "") if deployment.change_of(path) == "hot"]


def _paths(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _paths(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


class _Place(float):
    """A threshold that is written as a place for one: ``@low_qps.limit@``."""

    text: str

    @classmethod
    def of(cls, text: str) -> _Place:
        place = cls()
        place.text = text
        return place

    def __format__(self, spec: str) -> str:
        return f"@{self.text}@"

    def __truediv__(self, per_base: float) -> _Place:
        return _Place.of(self.text.replace(".threshold", ".limit"))


def rules() -> dict[str, Any]:
    """The Prometheus rules with a place for each number that an environment may change, and what it is by default."""
    rows = alerts.load()
    places = {name: row.model_copy(update={"threshold": _Place.of(f"{name}.threshold")}) for name, row in rows.items()}
    thresholds = {
        name: {"default": row.threshold, "per_base": row.per_base, "unit": row.unit} for name, row in rows.items()
    }
    return {"thresholds": thresholds, "rules": render.rules(places)}


def files() -> dict[str, str]:
    """Path below ``infra/chart`` -> content."""
    return {
        "values.yaml": values(),
        "values.schema.json": _json(schema()),
        "files/hot.json": _json(hot()),
        "files/rules.json": _json(rules()),
        **{f"files/dashboards/{name}": text for name, text in dashboards.files().items()},
    }


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def main() -> int:
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        return 0
    written = files()
    for name, text in written.items():
        (CHART / name).parent.mkdir(exist_ok=True)
        (CHART / name).write_text(text, encoding="utf-8")
    print(json.dumps({"written": [f"infra/chart/{name}" for name in written]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
