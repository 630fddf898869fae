"""``gate``: may the candidate take traffic? The exit code is the answer.

A comparison that goes on until it is decided, or its budget is spent. Looking again and again at growing data finds a
difference in the end wherever there is none; so each look has a level of its own, which all of them together keep
(:func:`benchmarks.stats.look_levels`). ``python -m benchmarks.simulate`` shows that they do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, model_validator

from benchmarks.command_line import measure, scenario_parser
from benchmarks.compare import Looks, compare_in_looks
from benchmarks.config import Scenario, VerdictRules
from benchmarks.progress import Display
from benchmarks.stats import look_levels

DESCRIPTION = """\
Decide whether the candidate b may replace a, and say so by the exit code: 0 PASS, 1 FAIL, 3 NO VERDICT (the evidence
does not decide), 4 INVALID (the figures say nothing). PASS needs every rule: the primary metric and each guarded one
are certainly not worse than a by more than their margins, the answers are as good, requests do not fail.

With max_pairs, pairs are added from `pairs` on until it is decided, max_pairs are done or budget_s is spent; the error
rates hold for all looks together. The results folder holds junit.xml, report.md, report.html and summary.json.

common keys: a, b, pairs=5, max_pairs=16, budget_s=600, duration_s (of one run), users or rate_per_s, calls=FILE.jsonl,
verdict.primary=latency_p50, verdict.margin=0.05, verdict.guards.ttft_p95=0.15, verdict.guards.goodput=0.02
verdict.limits.ttft_ms=300, verdict.max_accuracy_drop=0.03, out, lang=en|zh
"""


class GateScenario(Scenario):
    """A comparison that adds pairs until it is decided."""

    max_pairs: Annotated[int, Field(ge=2, le=200)] | None = None
    """Most pairs; it is judged after ``pairs`` and after each further one. null: after ``pairs``, once."""
    budget_s: Annotated[float, Field(gt=0)] | None = None
    """Warm-up and pairs take no longer, seconds; null: no limit."""

    @model_validator(mode="after")
    def _first_look_before_the_last(self) -> GateScenario:
        if self.max_pairs is not None and self.max_pairs < self.pairs:
            raise ValueError(f"max_pairs={self.max_pairs} is below pairs={self.pairs}, after which is looked first")
        return self


def main(words: Sequence[str]) -> int:
    parser = scenario_parser(
        "gate",
        DESCRIPTION,
        "gate benchmarks/configs/rollout_gate.yml a=http://stable:8000 b=http://candidate:8000",
        "gate benchmarks/configs/rollout_gate.yml a=http://stable:8000 b=http://candidate:8000 max_pairs=24 "
        "budget_s=900",
    )
    return measure(GateScenario, parser.parse_args(words), gate)


def gate(scenario: GateScenario, display: Display) -> tuple[int, dict[str, Any]]:
    """Compare until it is decided; write the results folder; the exit code and the summary.

    Raises:
        BenchmarkError: Nothing could be measured.
    """
    looks = Looks(levels_of_looks(scenario.pairs, scenario.max_pairs, scenario.verdict), scenario.budget_s)
    return compare_in_looks(scenario, display, looks, kind="gate")


def levels_of_looks(pairs: int, max_pairs: int | None, rules: VerdictRules) -> dict[int, float]:
    """After how many pairs it is judged, and at which two-sided level each time."""
    last = pairs if max_pairs is None else max_pairs
    if last == pairs:
        return {pairs: rules.alpha}
    counts = range(pairs, last + 1)
    levels = look_levels(tuple(count / last for count in counts), rules.alpha, rules.spending)
    return dict(zip(counts, levels, strict=True))
