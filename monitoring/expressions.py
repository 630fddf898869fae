"""Evaluates the part of PromQL that ``alerts.yml`` uses, over series in memory, as Prometheus 2.42 would.

Parsed by promql-parser. What it cannot evaluate it refuses: an alert is evaluated as it is written or not at all.
Source of the arithmetic: https://github.com/prometheus/prometheus/tree/v2.42.0/promql (functions.go, quantile.go).
"""

from __future__ import annotations

import math
import operator
import re
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import promql_parser as promql

from monitoring.series import Labels, Selector, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

Vector = dict[Labels, float]
Samples = tuple["Iterable[float]", "Iterable[float]"]

_SETS = ("and", "or", "unless")


class ExpressionError(ValueError):
    """An expression that is no PromQL, or that only Prometheus can evaluate."""


def parse(text: str) -> promql.Expr:
    """
    Raises:
        ExpressionError: It is no PromQL, or uses what is not known here.
    """
    try:
        expr = promql.parse(text)
    except ValueError as error:
        raise ExpressionError(f"{text!r} is no PromQL: {error}") from error
    evaluate(expr, Store(()), 0)  # every branch is evaluated, whatever there is: the unknown shows itself
    return expr


def selectors(expr: promql.Expr) -> list[Selector]:
    """What ``expr`` reads."""
    found: list[Selector] = []

    def visit(node: promql.Expr) -> None:
        if isinstance(node, promql.MatrixSelector):
            found.append(Selector.of(node.vector_selector, node.range.total_seconds()))
        elif isinstance(node, promql.VectorSelector):
            found.append(Selector.of(node))

    promql.walk(expr, visit)
    return found


def evaluate(expr: promql.Expr, store: Store, at: float) -> Vector | float:
    """The value of ``expr`` at Unix time ``at``: a number, or one for each set of labels.

    Raises:
        ExpressionError: It uses what is not known here, or sides cannot be matched one to one.
    """
    match expr:
        case promql.NumberLiteral():
            return expr.val
        case promql.ParenExpr():
            return evaluate(expr.expr, store, at)
        case promql.VectorSelector():
            _refuse_shifted(expr)
            found = ((labels, series.at(at)) for labels, series in store.select(Selector.of(expr)))
            return {labels: value for labels, value in found if value is not None}
        case promql.Call():
            return _call(expr, store, at)
        case promql.AggregateExpr():
            return _aggregate(expr, _vector(expr.expr, store, at))
        case promql.BinaryExpr():
            return _binary(expr, evaluate(expr.lhs, store, at), evaluate(expr.rhs, store, at))
    raise ExpressionError(f"{type(expr).__name__} is not evaluated here: {expr.prettify()}")


def _vector(expr: promql.Expr, store: Store, at: float) -> Vector:
    value = evaluate(expr, store, at)
    if not isinstance(value, dict):
        raise ExpressionError(f"a vector is wanted, not a number: {expr.prettify()}")
    return value


def _refuse_shifted(selector: promql.VectorSelector) -> None:
    if selector.offset is not None or selector.at is not None or not selector.name or selector.matchers.or_matchers:
        raise ExpressionError(f"only NAME{{LABELS}} is evaluated here, without offset and @: {selector}")


# Functions -------------------------------------------------------------------------------------------------


def _call(call: promql.Call, store: Store, at: float) -> Vector:
    name, arguments = call.func.name, call.args
    if name in _OVER_TIME:
        matrix = arguments[0]
        if not isinstance(matrix, promql.MatrixSelector):
            raise ExpressionError(f"subqueries are not evaluated here: {call.prettify()}")
        _refuse_shifted(matrix.vector_selector)
        back_s = matrix.range.total_seconds()
        found = {
            nameless(labels): _OVER_TIME[name](series.between(at - back_s, at), at - back_s, at)
            for labels, series in store.select(Selector.of(matrix.vector_selector, back_s))
        }
        return {labels: value for labels, value in found.items() if value is not None}
    if name in _OF_EACH and len(arguments) == 1:
        return {nameless(labels): _OF_EACH[name](value) for labels, value in _vector(arguments[0], store, at).items()}
    if name == "absent":
        return _absent(arguments[0], _vector(arguments[0], store, at))
    if name == "label_replace":
        return _label_replace(_vector(arguments[0], store, at), *(argument.val for argument in arguments[1:]))
    if name == "histogram_quantile" and isinstance(arguments[0], promql.NumberLiteral):
        return _quantiles(arguments[0].val, _vector(arguments[1], store, at))
    raise ExpressionError(f"{name}() is not evaluated here: {call.prettify()}")


def _increase(samples: Samples, start: float, end: float) -> float | None:
    """What a counter gained, extrapolated to the edges of the window as far as samples come close to them."""
    times, values = map(list, samples)
    if len(values) < 2:
        return None
    gained = values[-1] - values[0] + sum(before for before, after in pairwise(values) if after < before)
    sampled_s = times[-1] - times[0]
    between_s = sampled_s / (len(times) - 1)
    to_start, to_end = times[0] - start, end - times[-1]
    if gained > 0 and values[0] >= 0:  # a counter is not older than its zero
        to_start = min(to_start, sampled_s * values[0] / gained)
    reach = sum(gap if gap < between_s * 1.1 else between_s / 2 for gap in (to_start, to_end))
    return gained * (sampled_s + reach) / sampled_s


def _rate(samples: Samples, start: float, end: float) -> float | None:
    gained = _increase(samples, start, end)
    return None if gained is None else gained / (end - start)


def _changes(samples: Samples, _start: float, _end: float) -> float | None:
    values = list(samples[1])
    return float(sum(before != after for before, after in pairwise(values))) if values else None


def _over(function: Callable[[list[float]], float]) -> Callable[[Samples, float, float], float | None]:
    def of(samples: Samples, _start: float, _end: float) -> float | None:
        values = list(samples[1])
        return function(values) if values else None

    return of


_OVER_TIME: Mapping[str, Callable[[Samples, float, float], float | None]] = {
    "rate": _rate,
    "increase": _increase,
    "changes": _changes,
    "min_over_time": _over(min),
    "max_over_time": _over(max),
    "avg_over_time": _over(lambda values: sum(values) / len(values)),
}
_OF_EACH: Mapping[str, Callable[[float], float]] = {
    "abs": abs,
    "round": lambda value: float(math.floor(value + 0.5)) if math.isfinite(value) else value,
}


def _absent(expr: promql.Expr, vector: Vector) -> Vector:
    if vector:
        return {}
    named = expr.matchers.matchers if isinstance(expr, promql.VectorSelector) else ()
    return {frozenset((each.name, each.value) for each in named if each.op == promql.MatchOp.Equal): 1.0}


def _label_replace(vector: Vector, target: str, replacement: str, source: str, pattern: str) -> Vector:
    found: Vector = {}
    for labels, value in vector.items():
        values = dict(labels)
        match = re.fullmatch(pattern, values.get(source, ""))
        if match is not None:
            values[target] = match.expand(re.sub(r"\$\{?(\d+)\}?", r"\\\1", replacement))
        found[frozenset(item for item in values.items() if item[1])] = value
    return found


def _quantiles(share: float, vector: Vector) -> Vector:
    buckets: dict[Labels, list[tuple[float, float]]] = {}
    for labels, count in vector.items():
        edge = dict(labels).get("le")
        if edge is not None:
            rest = frozenset(item for item in nameless(labels) if item[0] != "le")
            buckets.setdefault(rest, []).append((float(edge), count))
    return {labels: _quantile(share, sorted(counts)) for labels, counts in buckets.items()}


def _quantile(share: float, buckets: list[tuple[float, float]]) -> float:
    """By linear interpolation within the bucket; the last finite edge where it lies beyond."""
    if len(buckets) < 2 or not math.isinf(buckets[-1][0]):
        return math.nan
    # Buckets of several moments may contradict each other; Prometheus then takes what was counted below.
    counts = accumulate((count for _, count in buckets), max)
    buckets = [(edge, count) for (edge, _), count in zip(buckets, counts, strict=True)]
    if not buckets[-1][1] > 0:
        return math.nan
    rank = share * buckets[-1][1]
    at = next((index for index, (_, count) in enumerate(buckets[:-1]) if count >= rank), None)
    if at is None:
        return buckets[-2][0]
    edge, count = buckets[at]
    if at == 0 and edge <= 0:
        return edge
    lower, below = buckets[at - 1] if at else (0.0, 0.0)
    return lower + (edge - lower) * (rank - below) / (count - below)


# Operators -------------------------------------------------------------------------------------------------


def nameless(labels: Labels) -> Labels:
    return frozenset(item for item in labels if item[0] != "__name__")


def _only(labels: Labels, names: Iterable[str]) -> Labels:
    wanted = set(names)
    return frozenset(item for item in labels if item[0] in wanted)


def _without(labels: Labels, names: Iterable[str]) -> Labels:
    unwanted = {*names, "__name__"}
    return frozenset(item for item in labels if item[0] not in unwanted)


def _aggregate(expr: promql.AggregateExpr, vector: Vector) -> Vector:
    function = _AGGREGATES.get(str(expr.op))
    if function is None:
        raise ExpressionError(f"{expr.op} is not evaluated here: {expr.prettify()}")
    groups: dict[Labels, list[float]] = {}
    for labels, value in vector.items():
        if expr.modifier is None:
            key: Labels = frozenset()
        elif expr.modifier.type == promql.AggModifierType.By:
            key = _only(labels, expr.modifier.labels)
        else:
            key = _without(labels, expr.modifier.labels)
        groups.setdefault(key, []).append(value)
    return {labels: function(values) for labels, values in groups.items()}


def _extreme(function: Callable[[list[float]], float]) -> Callable[[list[float]], float]:
    """NaN only where there is nothing else."""
    return lambda values: function([value for value in values if not math.isnan(value)] or values)


_AGGREGATES: Mapping[str, Callable[[list[float]], float]] = {"sum": sum, "max": _extreme(max), "min": _extreme(min)}


def _divide(a: float, b: float) -> float:
    if b:
        return a / b
    return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1, b)


_ARITHMETIC: Mapping[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": _divide,
}
_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}


def _binary(expr: promql.BinaryExpr, left: Vector | float, right: Vector | float) -> Vector | float:
    op = str(expr.op)
    if op not in {*_SETS, *_ARITHMETIC, *_COMPARISONS} or (expr.modifier is not None and expr.modifier.return_bool):
        raise ExpressionError(f"{op} is not evaluated here in this form: {expr.prettify()}")
    if isinstance(left, dict) and isinstance(right, dict):
        return _set(op, expr, left, right) if op in _SETS else _matched(op, expr, left, right)
    if isinstance(left, dict) and not isinstance(right, dict):
        return _each(op, left, lambda value: (value, right))
    if isinstance(right, dict) and not isinstance(left, dict):
        return _each(op, right, lambda value: (left, value))
    assert not isinstance(left, dict)
    assert not isinstance(right, dict)
    return _ARITHMETIC[op](left, right)


def _each(op: str, vector: Vector, sides: Callable[[float], tuple[float, float]]) -> Vector:
    """A vector with a number: computed, or kept where it compares."""
    if op in _ARITHMETIC:
        return {nameless(labels): _ARITHMETIC[op](*sides(value)) for labels, value in vector.items()}
    return {labels: value for labels, value in vector.items() if _COMPARISONS[op](*sides(value))}


def _signature(expr: promql.BinaryExpr) -> Callable[[Labels], Labels]:
    """By what labels the two sides are brought together."""
    matching = None if expr.modifier is None else expr.modifier.matching
    if matching is None:
        return nameless
    if matching.type == promql.LabelModifierType.Include:
        return lambda labels: _only(labels, matching.labels)
    return lambda labels: _without(labels, matching.labels)


def _set(op: str, expr: promql.BinaryExpr, left: Vector, right: Vector) -> Vector:
    signature = _signature(expr)
    others = {signature(labels) for labels in (left if op == "or" else right)}
    if op == "or":
        return left | {labels: value for labels, value in right.items() if signature(labels) not in others}
    return {labels: value for labels, value in left.items() if (signature(labels) in others) == (op == "and")}


def _matched(op: str, expr: promql.BinaryExpr, left: Vector, right: Vector) -> Vector:
    signature, modifier = _signature(expr), expr.modifier
    many = modifier is not None and modifier.card == promql.VectorMatchCardinality.ManyToOne
    if modifier is not None and (modifier.card == promql.VectorMatchCardinality.OneToMany or modifier.group_labels):
        raise ExpressionError(f"of groupings only group_left () is evaluated here: {expr.prettify()}")
    others: dict[Labels, float] = {}
    for labels, value in right.items():
        if signature(labels) in others:
            raise ExpressionError(f"several on the right side of {expr.prettify()} match {dict(signature(labels))}")
        others[signature(labels)] = value
    found: Vector = {}
    for labels, value in left.items():
        key = signature(labels)
        if key not in others:
            continue
        if op in _COMPARISONS and not _COMPARISONS[op](value, others[key]):
            continue
        result = labels if many or op in _COMPARISONS else nameless(labels)
        result = result if many or modifier is None or modifier.matching is None else key
        result = nameless(result) if op in _ARITHMETIC else result
        if result in found:
            raise ExpressionError(f"several on the left side of {expr.prettify()} match {dict(key)}")
        found[result] = _ARITHMETIC[op](value, others[key]) if op in _ARITHMETIC else value
    return found
