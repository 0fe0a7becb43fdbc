"""What each user and key has used, the limits of both, and the audit log. Written by one thread, in order."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from shoal.serve.caller import Caller
from shoal.serve.errors import ApiError

if TYPE_CHECKING:
    from shoal.engine.open import OpenedModel as Opened
    from shoal.engine.types import Finished
    from shoal.serve.accounts import Accounts, Limits

log = logging.getLogger("shoal.serve")


class Ledger:
    """`spend` and `note` return at once; a reader sees them a moment later, `flush` waits for that."""

    def __init__(self, accounts: Accounts):
        self.accounts = accounts
        self._running: Counter[str] = Counter()  # answers in work, by the id of a user or a key
        self._unwritten: Counter[str] = Counter()  # tokens that are not in the file yet, likewise
        self._lock = threading.Lock()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="shoal-ledger")

    def spend(
        self,
        caller: Caller,
        model: str,
        prompt_tokens: int,
        completion_tokens: int,
        seconds: float,
        usd: float | None,
        joules: float | None,
    ) -> None:
        bill = {"seconds": seconds, "usd": usd, "joules": joules}
        self._book(caller, model, prompt_tokens, completion_tokens, lambda: bill)

    def spend_answer(
        self, caller: Caller, opened: Opened, finished: Finished, cost: Callable[..., dict[str, Any]]
    ) -> None:
        """`cost` makes the bill of it (`answers.cost_object`)."""
        used = finished.usage
        self._book(
            caller, opened.name, used.prompt_tokens, used.completion_tokens, lambda: cost(opened, [finished])
        )

    def _book(
        self, caller: Caller, model: str, prompt: int, completion: int, bill: Callable[[], dict[str, Any]]
    ) -> None:
        if not prompt and not completion:  # it was cut before its turn came
            return
        tokens = dict.fromkeys((caller.owner, caller.key_id), prompt + completion)
        with self._lock:  # engines' threads count up, the writer's down
            self._unwritten.update(tokens)

        def write() -> None:
            try:
                self.accounts.add_usage(caller.owner, caller.key_id, model, prompt, completion, bill())
            finally:
                with self._lock:
                    self._unwritten.subtract(tokens)

        self.soon(write)

    def note(self, caller: Caller, action: str, target: str = "") -> None:
        self.soon(
            lambda: self.accounts.add_audit(
                action, target, owner=caller.owner, name=caller.name, address=caller.address
            )
        )

    def soon(self, write: Callable[[], object]) -> None:
        """Have `write` done by the one thread that writes here; a failure is logged and stops nothing."""

        def guarded() -> None:
            try:
                write()
            except Exception as fault:  # a full disk, say: no answer is refused for it
                log.error("usage or audit is not stored: %s", type(fault).__name__)

        with contextlib.suppress(RuntimeError):  # the server has ended
            self._writer.submit(guarded)

    def flush(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._writer.submit(lambda: None).result()

    def close(self) -> None:
        """Write what is left."""
        self._writer.shutdown(wait=True)

    # ---- limits

    def check(self, caller: Caller) -> None:
        """Raises ApiError 429 when the caller's key, or he with all he does, has used up the day or has as many answers
        in work as it may."""
        if caller.key_id:
            limits = self.accounts.key_limits(caller.key_id)
            if limits is None:
                raise ApiError(401, "this key was revoked", code="invalid_api_key")
            self._check("key", caller.key_id, limits)
        if limits := self.accounts.user_limits(caller.owner):
            self._check("user", caller.owner, limits)

    def _check(self, what: str, row_id: str, limits: Limits) -> None:
        if limits.parallel is not None and self._running[row_id] >= limits.parallel:
            raise ApiError(
                429,
                f"this {what} may have {limits.parallel} answers in work at once, and has them; wait for one",
                code="parallel_limit",
                headers={"retry-after": "2"},
            )
        used = limits.used_today + self._unwritten[row_id]
        if limits.tokens_a_day is not None and used >= limits.tokens_a_day:
            raise ApiError(
                429,
                f"this {what} has used {used} of {limits.tokens_a_day} tokens a day;"
                " the next day begins at 00:00 UTC",
                code="tokens_a_day_limit",
                headers={"retry-after": str(seconds_to_midnight()), "x-should-retry": "false"},
            )

    @contextlib.contextmanager
    def counted(self, caller: Caller) -> Iterator[None]:
        """An answer of this caller is in work while the block runs."""
        whose = {caller.owner, caller.key_id}
        self._running.update(whose)
        try:
            yield
        finally:
            self._running.subtract(whose)


def seconds_to_midnight() -> int:
    """Until the next day begins, UTC; at least 1."""
    return 86_400 - int(time.time()) % 86_400
