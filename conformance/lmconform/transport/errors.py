"""What a call to an engine can raise, beside ``adapter.NotOffered`` and ``adapter.Refused``.

``EngineFault`` derives from BaseException on purpose: a search for a smaller example must not go through one crash
after another.
"""

from __future__ import annotations


class StartError(Exception):
    """The engine could not be started: the target, an option, the interpreter or the constructor."""

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail
        """Several lines of material: a traceback, or the last lines of stderr."""
        if detail:
            self.add_note(detail)


class EngineFault(BaseException):
    """The engine did not give a usable answer. The text is one paragraph."""

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail
        """Several lines of material: a traceback, or the last lines of stderr."""
        if detail:
            self.add_note(detail)


class EngineDied(EngineFault):
    """The engine's process ended during a call, or a session was lost with it."""


class EngineTimeout(EngineFault):
    """A call took longer than its time limit; the process was killed."""


class ProtocolError(EngineFault):
    """What came over the wire is not a message of the protocol."""


class EngineRaised(EngineFault):
    """The adapter raised an exception other than NotOffered and Refused."""

    def __init__(self, message: str, type_name: str, engine_message: str, traceback: str) -> None:
        super().__init__(message, traceback)
        self.type = type_name
        self.engine_message = engine_message
        self.traceback = traceback


class BadResult(EngineFault):
    """The answer has a wrong shape or dtype, or does not fit its request."""


class NotFinite(BadResult):
    """The answer holds NaN or +inf: ``value`` is the first of them in words, and ``where`` its place."""

    def __init__(self, message: str, value: str, where: str) -> None:
        super().__init__(message)
        self.value = value
        self.where = where


class UnknownId(BadResult):
    """The answer holds ``token``, an id that the vocabulary does not have."""

    def __init__(self, message: str, token: int) -> None:
        super().__init__(message)
        self.token = token
