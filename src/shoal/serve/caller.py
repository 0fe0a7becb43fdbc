"""Who asks. The door finds it out once; all that a request starts (also what outlives it) can look here."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from shoal.serve.errors import ApiError
from shoal.serve.settings import LOCAL_OWNER

if TYPE_CHECKING:
    from shoal.engine.handle import Handle
    from shoal.engine.open import OpenedModel as Opened
    from shoal.serve.ledger import Ledger


@dataclass(frozen=True)
class Caller:
    """`owner` is what rows carry: a user's id, or 'local' where there are no users; "" is somebody unknown, who sees
    the page's files and the sign-in. `session` is the digest of the cookie he came with, `key_id` the user's key."""

    owner: str = LOCAL_OWNER
    name: str = ""
    admin: bool = False
    session: bytes | None = None
    key_id: str = ""
    address: str = ""
    ledger: Ledger | None = None


NOBODY = Caller("")
CALLER: ContextVar[Caller] = ContextVar("shoal_caller", default=NOBODY)


def caller_of(request: Request) -> Caller:
    """Raises ApiError 401 for somebody unknown."""
    caller: Caller = request.scope["shoal.caller"]
    if not caller.owner:
        raise ApiError(401, "sign in first", headers={"www-authenticate": "Bearer"})
    return caller


def require_admin(request: Request) -> Caller:
    """For what concerns the whole server. Without users whoever may use it is its admin. Raises ApiError 403."""
    caller = caller_of(request)
    if not caller.admin or caller.key_id:
        raise ApiError(403, "only the admin may do this, signed in on the page", code="not_admin")
    return caller


def audit(request: Request, action: str, target: str = "") -> None:
    """Note what was done, never what was written: a name or an id at most. Waits for nothing."""
    caller: Caller = request.scope["shoal.caller"]
    if caller.ledger is not None:
        caller.ledger.note(caller, action, target)


def check_limits() -> None:
    """Raises ApiError 429 when whoever asks now, or his key, has used up the day or has enough answers in work."""
    caller = CALLER.get()
    if caller.ledger is not None:
        caller.ledger.check(caller)


def counted() -> AbstractContextManager[None]:
    """An answer of whoever asks now is in work while the block runs."""
    caller = CALLER.get()
    return caller.ledger.counted(caller) if caller.ledger is not None else nullcontext()


def spend(
    model: str,
    *,
    prompt_tokens: int,
    completion_tokens: int,
    seconds: float = 0.0,
    usd: float | None = None,
    joules: float | None = None,
) -> None:
    """Book an answer on whoever asks now. Waits for nothing."""
    caller = CALLER.get()
    if caller.ledger is not None:
        caller.ledger.spend(caller, model, prompt_tokens, completion_tokens, seconds, usd, joules)


def spend_at_end(handle: Handle, opened: Opened, cost: Callable[..., dict[str, Any]]) -> None:
    """Book an answer on whoever asks now as soon as the engine is done with it, also if it was cut or nobody reads."""
    caller = CALLER.get()
    if caller.ledger is not None:
        ledger = caller.ledger
        handle.when_finished(lambda finished: ledger.spend_answer(caller, opened, finished, cost))
