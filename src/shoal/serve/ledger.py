"""What each user and key has used, the limits of keys, and the audit log. Written by one thread, in order."""

from __future__ import annotations

import contextlib
import logging
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
    from shoal.serve.accounts import Accounts

log = logging.getLogger("shoal.serve")


class Ledger:
    """`spend` and `note` return at once; a reader sees them a moment later, `flush` waits for that."""

    def __init__(self, accounts: Accounts):
        self.accounts = accounts
        self._running: Counter[str] = Counter()  # answers in work, by key
        self._unwritten: Counter[str] = Counter()  # tokens that are not in the file yet, by key
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
        self._unwritten[caller.key_id] += prompt + completion

        def write() -> None:
            try:
                self.accounts.add_usage(caller.owner, caller.key_id, model, prompt, completion, bill())
            finally:
                self._unwritten[caller.key_id] -= prompt + completion

        self.soon(write)

    def note(self, caller: Caller, action: str, target: str = "") -> None:
        self.soon(
            lambda: self.accounts.add_audit(
                action, target, owner=caller.owner, name=caller.name, address=caller.address
            )
        )

    def soon(self, write: Callable[[], None]) -> None:
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

    # ---- limits of keys

    def check(self, caller: Caller) -> None:
        """Raises ApiError 429 when the caller's key has used up its day, or has as many answers in work as it may."""
        if not caller.key_id:
            return
        limits = self.accounts.limits(caller.key_id)
        if limits is None:
            raise ApiError(401, "this key was revoked", code="invalid_api_key")
        used = limits.used_today + self._unwritten[caller.key_id]
        if limits.parallel is not None and self._running[caller.key_id] >= limits.parallel:
            raise ApiError(
                429,
                f"this key may have {limits.parallel} answers in work at once, and has them; wait for one",
                code="parallel_limit",
                headers={"retry-after": "2"},
            )
        if limits.tokens_a_day is not None and used >= limits.tokens_a_day:
            wait = seconds_to_midnight()
            raise ApiError(
                429,
                f"this key has used {used} of its {limits.tokens_a_day} tokens of today;"
                " the next day begins at 00:00 UTC",
                code="tokens_a_day_limit",
                headers={"retry-after": str(wait), "x-should-retry": "false"},
            )

    @contextlib.contextmanager
    def counted(self, caller: Caller) -> Iterator[None]:
        """An answer of this caller is in work while the block runs."""
        if not caller.key_id:
            yield
            return
        self._running[caller.key_id] += 1
        try:
            yield
        finally:
            self._running[caller.key_id] -= 1


def seconds_to_midnight() -> int:
    """Until the next day begins, UTC; at least 1."""
    return 86_400 - int(time.time()) % 86_400
