"""What can end a command of training, and the exit status each one becomes.

TrainingError
├── DataError               4  calls that cannot be used; nothing was written
├── UnusableDataError       2  rows or categories that nothing can be learned from
├── RunMismatchError        2  the run directory holds another run
├── LossNotFiniteError      1  training diverged; the message names the calls
├── CheckpointError         4  a checkpoint could not be written, or none of those there can be used
├── GradientCheckError      4  4-bit layers give wrong gradients here
└── InterruptedRunError  128+n a signal came; a checkpoint was written

A model or an amount of memory that does not do raises model_server.errors' ModelLoadError,
ConfigurationError or ResourceInsufficientError, as it does when serving.
"""

from __future__ import annotations

from collections.abc import Sequence


class TrainingError(Exception):
    """Root of what ends a command."""

    exit_status = 2


class DataError(TrainingError, ValueError):
    """Calls that cannot be used. The message says where, what was got and what is allowed."""

    exit_status = 4


class UnusableDataError(TrainingError):
    """Rows or categories that nothing can be learned from."""


class RunMismatchError(TrainingError):
    """The run directory holds another run."""


class LossNotFiniteError(TrainingError):
    """Training diverged."""

    exit_status = 1

    def __init__(self, step: int, what: str, conversation_ids: Sequence[str], checkpoint: str | None) -> None:
        super().__init__(step, what, conversation_ids, checkpoint)
        self.step, self.what, self.conversation_ids, self.checkpoint = step, what, conversation_ids, checkpoint

    def __str__(self) -> str:
        kept = "no checkpoint had been written" if self.checkpoint is None else f"{self.checkpoint} is kept"
        return (
            f"step {self.step}: the {self.what} is not a finite number on the calls "
            f"{', '.join(self.conversation_ids)}; {kept}: look at these calls, or lower learning_rate"
        )


class CheckpointError(TrainingError):
    """A checkpoint could not be written, or none of those there can be used."""

    exit_status = 4


class GradientCheckError(TrainingError):
    """4-bit layers give wrong gradients here."""

    exit_status = 4


class InterruptedRunError(TrainingError):
    """A signal came; a checkpoint was written."""

    def __init__(self, signal: int, step: int, go_on: str) -> None:
        super().__init__(signal, step, go_on)
        self.signal, self.step, self.go_on = signal, step, go_on

    @property
    def exit_status(self) -> int:  # type: ignore[override]
        return 128 + self.signal

    def __str__(self) -> str:
        return f"stopped by a signal after step {self.step}, checkpoint written; to go on: {self.go_on}"
