"""What can end a benchmark, and the exit code each one becomes.

BenchmarkError
├── UsageError             2  what was asked cannot be run
│   ├── CallsFileError     2  a line of the calls file; the message is FILE:LINE:FIELD
│   └── ResultsError       2  not a results folder, or one of another version
├── InterruptedRunError    3  Ctrl-C; what was measured is kept and marked
├── EndpointError          4  the URL does not answer as its dialect should
├── InvalidRunError        4  it ran, and what it measured must not be used
└── DeploymentFailedError  4  a server that the demo started did not become ready
"""

from __future__ import annotations

PASS, FAIL, USAGE, NO_VERDICT, INVALID = 0, 1, 2, 3, 4


class BenchmarkError(Exception):
    """Root of what ends a benchmark with one line instead of a result."""

    exit_code = INVALID


class UsageError(BenchmarkError):
    exit_code = USAGE


class CallsFileError(UsageError):
    def __init__(self, path: str, line: int, field: str, problem: str) -> None:
        super().__init__(path, line, field, problem)
        self.path, self.line, self.field, self.problem = path, line, field, problem

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.field}: {self.problem}"


class ResultsError(UsageError):
    """The folder cannot be read as results of this version."""


class InterruptedRunError(BenchmarkError):
    exit_code = NO_VERDICT


class EndpointError(BenchmarkError):
    """``url`` cannot be measured."""

    def __init__(self, url: str, problem: str) -> None:
        super().__init__(url, problem)
        self.url, self.problem = url, problem

    def __str__(self) -> str:
        return f"{self.url}: {self.problem}"


class InvalidRunError(BenchmarkError):
    """The run happened, but its figures say nothing about the server."""


class DeploymentFailedError(BenchmarkError):
    """A server did not become ready."""
