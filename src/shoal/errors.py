"""The one family of errors that is meant for people: shown as text, without a traceback."""

from __future__ import annotations


class ShoalError(Exception):
    """Something a person can mend.

    `message` says what happened (and the likely cause), `hint` says what to do. `exit_code` is what the command
    line ends with: 1 failed, 2 wrong use.
    """

    def __init__(self, message: str, *, hint: str = "", exit_code: int = 1):
        super().__init__(message)
        self.message, self.hint, self.exit_code = message, hint, exit_code

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(ShoalError):
    """The command or the call itself is wrong (exit code 2)."""

    def __init__(self, message: str, *, hint: str = ""):
        super().__init__(message, hint=hint, exit_code=2)
