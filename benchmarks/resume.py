"""``resume``: go on with a benchmark that was killed, interrupted, or ran out of disk.

The verb runs again from its beginning, with the scenario of the manifest; :class:`benchmarks.session.Session` answers
for the runs that are finished, so no verb knows about it and every decision is taken anew from the same records.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from benchmarks.command_line import parser, print_result, words_of
from benchmarks.config import WATCHED, Scenario
from benchmarks.deployments import asked_to_stop
from benchmarks.errors import ResultsError
from benchmarks.progress import Display
from benchmarks.results import read_manifest, read_summary
from benchmarks.session import resuming
from runconfig import validate

MOVED = ("url", "a", "b", "lang", *(side + key for side in ("", "a_", "b_") for key in WATCHED))
"""What may have changed since: servers get other ports and process ids."""


def main(words: Sequence[str]) -> int:
    options = parser(
        "resume",
        "Go on with a results folder that is not complete. Finished runs are kept; one that was broken off is done "
        "again and its records are left out. A folder that is complete is answered from its summary.",
        "resume runs/latest",
        "resume runs/classify-20261123-120000 a=http://127.0.0.1:8011 a_pid=4711",
    )
    options.add_argument("folder", type=Path, help="a results folder")
    options.add_argument("settings", nargs="*", metavar="key=value", help=f"what has moved: {', '.join(MOVED)}")
    found = options.parse_args(words)
    moved = {key: None if value == "null" else value for key, value in words_of(found.settings, MOVED).items()}
    manifest = read_manifest(found.folder)
    if manifest["complete"]:
        with contextlib.suppress(ResultsError):  # else it is written anew from the records
            summary = read_summary(found.folder)
            print_result(summary, manifest["scenario"]["lang"], as_json=found.json)
            return int(summary["exit_code"])
    work, model = _verb(manifest["kind"])
    folder = found.folder.resolve()
    scenario = validate(model, manifest["scenario"] | moved | {"out": str(folder)}, str(folder / "manifest.json"))
    with asked_to_stop(), resuming(folder), Display(quiet=found.quiet) as display:
        code, summary = work(scenario, display)
    print_result(summary, scenario.lang, as_json=found.json)
    return code


def _verb(kind: str) -> tuple[Callable[[Any, Display], tuple[int, dict[str, Any]]], type[Scenario]]:
    """The function that made results of ``kind``, and the scenario it takes: ``kind(scenario, display)`` in the verb's
    module.

    Raises:
        ResultsError: No verb makes them, or it cannot be continued.
    """
    from benchmarks.__main__ import VERBS

    work = getattr(importlib.import_module(VERBS[kind][0]), kind, None) if kind in VERBS else None
    model = get_type_hints(work).get("scenario") if work is not None else None
    if work is None or not isinstance(model, type) or not issubclass(model, Scenario):
        raise ResultsError(f"results of {kind!r} cannot be continued: start again in another folder")
    return work, model
