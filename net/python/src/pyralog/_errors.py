"""What goes wrong."""

from __future__ import annotations

from typing import Any

from ._choices import Outcome
from ._native import ffi, lib


class PyralogError(Exception):
    """A request failed. Always one of `NotAccepted` and `UnknownOutcome`."""

    code: int
    """One of `ErrorCode`, or a number that only a newer library knows."""
    name: str
    """The code's name, like "UnknownTopicOrPartition"."""
    outcome: Outcome
    """Whether the request had an effect."""
    retriable: bool
    """Whether the same request can succeed later without anybody changing it."""

    def __init__(self, message: str, code: int, outcome: Outcome, retriable: bool) -> None:
        super().__init__(message, code, outcome, retriable)
        self.code = code
        self.name = ffi.string(lib.pyralog_status_name(code)).decode()
        self.outcome = outcome
        self.retriable = retriable

    def __str__(self) -> str:
        return str(self.args[0])


class NotAccepted(PyralogError):
    """It had no effect. It may be sent again."""


class UnknownOutcome(PyralogError):
    """It may or may not have taken effect. Sending it again may do it twice."""


def _error(message: Any, code: int, outcome: int, retriable: int) -> PyralogError:
    kind = NotAccepted if outcome == lib.PYRALOG_OUTCOME_NOT_ACCEPTED else UnknownOutcome
    text = ffi.string(message).decode("utf-8", "replace") if message else "no more is known"
    return kind(text, code, Outcome(outcome), bool(retriable))


def last_error(status: int) -> PyralogError:
    """The error of the call on this thread that has just returned this status."""
    outcome, retriable = lib.pyralog_last_error_outcome(), lib.pyralog_last_error_retriable()
    return _error(lib.pyralog_last_error_message(), status, outcome, retriable)


def delivery_error(delivery: Any) -> PyralogError:
    """The error of a delivery that has failed."""
    return _error(delivery.message, delivery.status, delivery.outcome, delivery.retriable)


def check(status: int) -> None:
    """Raises the error of a call that has just returned this status, if it is one."""
    if status:
        raise last_error(status)
