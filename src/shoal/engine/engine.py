"""The engine: one thread that repeats schedule, run, postprocess, and a handle for each request. No torch here."""

from __future__ import annotations

import atexit
import functools
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.data.tokenizer import Tokenizer
from shoal.engine import scheduler as scheduling
from shoal.engine.cache import BlockPool
from shoal.engine.detokenize import Detokenizer
from shoal.engine.handle import Handle
from shoal.engine.prefix import DiskBlocks, chain_root
from shoal.engine.runner import Chunk, Runner
from shoal.engine.sampling import Sampler, log_softmax, top_logprobs
from shoal.engine.scheduler import Scheduler, SequenceStatus, Share
from shoal.engine.speculate import Speculator
from shoal.engine.types import (
    ContextLengthExceeded,
    Delta,
    Finished,
    FinishReason,
    InvalidRequest,
    Piece,
    PromptLogprobs,
    PromptProgress,
    Queued,
    QueueFull,
    Request,
    Stats,
    Timings,
    Usage,
)
from shoal.errors import ShoalError

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Active:
    """A request in the engine: its tokens, its sampling and text state, its clock."""

    request: Request
    handle: Handle
    sequence: scheduling.Sequence
    sampler: Sampler
    detokenizer: Detokenizer
    end_ids: frozenset[int]
    limit: int
    """Tokens the answer may have."""
    submitted: float
    started: float | None = None
    first_token: float | None = None
    position: int | None = None
    """The last place in the queue that was told."""
    drafted: int = 0
    accepted: int = 0
    seconds_with: float = 0.0
    """Of the steps that could have held drafts: what they took, and what they would have without, token by token."""
    seconds_without: float = 0.0
    prompt_logprobs: list[float | None] = field(default_factory=list)
    prompt_top: list[list[tuple[int, float]]] = field(default_factory=list)

    @property
    def answered(self) -> int:
        return len(self.sequence.token_ids) - self.sequence.prompt_tokens


class Engine:
    """Serves many requests at once with one runner.

    `max_model_len` is the context (prompt and answer together; default: what the network and the cache hold),
    `max_num_seqs` how many run at once, `max_num_batched_tokens` the tokens of a step, `max_waiting` how many may
    queue. `disk` keeps cached prefixes over restarts (the engine closes it); `speculator` drafts tokens. A fault inside
    one request ends that request with an error; a fault outside ends those in flight, and the engine begins anew.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        *,
        max_model_len: int | None = None,
        max_num_seqs: int = 8,
        max_num_batched_tokens: int | None = None,
        max_waiting: int = 256,
        eos_ids: Sequence[int] | None = None,
        disk: DiskBlocks | None = None,
        speculator: Speculator | None = None,
    ):
        self.runner, self.tokenizer = runner, tokenizer
        holds = min(runner.max_positions, runner.cache_blocks * runner.block_size)
        self.max_model_len = min(max_model_len or holds, holds)
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens or runner.prefill_chunk
        self.max_waiting = max_waiting
        self._disk, self._speculator = disk, speculator
        self.adapters: set[str] = set()
        """Names that a request may give as its adapter."""
        self._eos_ids = frozenset(tokenizer.eos_ids if eos_ids is None else eos_ids)
        self._inbox: deque[_Active] = deque()
        self._jobs: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._active: dict[scheduling.Sequence, _Active] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._stirred = False  # something to look at: a request, a cancellation, a job, the end
        self._steps = self._prompt_tokens = self._cached_tokens = self._completion_tokens = self._restarts = 0
        self._draft_tokens = self._accepted_tokens = 0
        self._step_seconds = (
            0.0,
            0.0,
        )  # of the step at hand, if it could hold drafts; and of one without any
        self._finished: Counter[str] = Counter()
        self._scheduler = self._new_scheduler()
        self._thread = threading.Thread(target=self._live, name="shoal-engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a daemon thread inside a kernel must not meet a dying interpreter

    # ---- from any thread

    def submit(self, request: Request) -> Handle:
        """Queue a request. Raises ContextLengthExceeded, QueueFull or InvalidRequest; whatever happens later is an
        event."""
        handle = Handle(request, self._stir)
        try:
            active = self._admit(request, handle)
        except ShoalError:
            raise
        except (
            Exception
        ) as error:  # the API checks each field; this is the last door, for whatever else comes
            raise InvalidRequest("request", f"a parameter has the wrong type or size: {error}") from error
        with self._changed:
            if self._closing:
                raise ShoalError("the engine is closed", hint="Load the model again.")
            waiting = len(self._inbox) + len(self._scheduler.waiting)
            if waiting >= self.max_waiting:
                raise QueueFull(waiting)
            self._inbox.append(active)
        self._stir()
        return handle

    def stats(self) -> Stats:
        """Counts of this moment; cheap, from any thread."""
        pool = self._scheduler.pool
        return Stats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting) + len(self._inbox),
            cache_blocks=pool.count,
            cache_blocks_free=pool.free,
            kv_bytes=(pool.count - pool.free) * self.runner.block_bytes,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            completion_tokens=self._completion_tokens,
            draft_tokens=self._draft_tokens,
            accepted_tokens=self._accepted_tokens,
            preemptions=self._scheduler.preemptions,
            finished=dict(self._finished),
            restarts=self._restarts,
        )

    def refresh_weights(self, tensors: Mapping[str, Any]) -> None:
        """New weights in place, between two steps; returns when they are there. Running answers go on with them, what
        they had in the cache is computed again."""

        def refresh() -> None:
            self.runner.refresh_weights(tensors)
            self._forget()
            self._drop_disk()  # it is of the weights that were

        self._between_steps(refresh)

    def load_adapter(self, name: str, factors: Mapping[str, tuple[Any, Any, float]]) -> None:
        """Requests may name this adapter from now on (`runner.load_adapter`). The same name again, or factors that a
        trainer has moved in place: what the cache holds is forgotten, running answers are computed anew."""

        def load() -> None:
            self.runner.load_adapter(name, factors)
            if name in self.adapters:
                self._forget()
            self.adapters.add(name)

        self._between_steps(load)

    def unload_adapter(self, name: str) -> None:
        """No request may name it any more; the answers that use it end with an error."""

        def unload() -> None:
            self.adapters.discard(name)
            gone = InvalidRequest("adapter", f"adapter {name!r} was taken away")
            for active in [a for a in self._active.values() if a.request.adapter == name]:
                self._finish(active, "error", error=gone)
            self.runner.unload_adapter(name)
            self._forget()  # another may come by this name

        self._between_steps(unload)

    def _forget(self) -> None:
        """What the cache holds is of weights that were: running answers are computed anew."""
        for sequence in reversed(list(self._scheduler.running)):
            self._scheduler.preempt(sequence)
        self._scheduler.pool.forget()
        if self._speculator is not None:
            self._speculator.forget()

    def _between_steps(self, job: Callable[[], None]) -> None:
        """Do something in the engine's own thread; returns when it is done, raises what it raises."""
        done: Future[None] = Future()
        with self._changed:
            if self._closing:
                raise ShoalError("the engine is closed", hint="Load the model again.")
            self._jobs.append((job, done))
        self._stir()
        done.result()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closing

    def close(self) -> None:
        """End all requests (reason "cancelled") and give the runner's memory back. May be called twice."""
        with self._changed:
            first, self._closing = not self._closing, True
        self._stir()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        if first:
            atexit.unregister(self.close)
            self._drop_disk()
            self.runner.close()

    def _stir(self) -> None:
        with self._changed:
            self._stirred = True
            self._changed.notify_all()

    def _admit(self, request: Request, handle: Handle) -> _Active:
        """Everything about a request that can be wrong shows here, in the caller's thread."""
        prompt, params = [int(i) for i in request.prompt_ids], request.params
        if request.adapter is not None and request.adapter not in self.adapters:
            known = ", ".join(sorted(self.adapters)) or "none"
            raise InvalidRequest("adapter", f"adapter {request.adapter!r} is not loaded; there are: {known}")
        if not prompt:
            raise InvalidRequest("prompt", "the prompt is empty: there is nothing to continue")
        if min(prompt) < 0 or max(prompt) >= self.runner.vocab_size:
            raise InvalidRequest("prompt", f"token ids must lie in 0 .. {self.runner.vocab_size - 1}")
        if len(prompt) > self.max_model_len:
            raise ContextLengthExceeded(len(prompt), self.max_model_len)
        room = self.max_model_len - len(prompt)
        scored = params.prompt_logprobs is not None  # every position must be computed
        root = None if scored else chain_root(request.cache_salt, request.adapter)
        end_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._eos_ids)
        return _Active(
            request=request,
            handle=handle,
            sequence=scheduling.Sequence(
                prompt, len(prompt), root=root, forced=getattr(request.logits_hook, "must_follow", None)
            ),
            sampler=Sampler(
                params, prompt_ids=prompt, vocab_size=self.runner.vocab_size, end_ids=list(end_ids)
            ),
            detokenizer=Detokenizer(self.tokenizer, params.stop, min_tokens=params.min_tokens),
            end_ids=end_ids,
            limit=room if params.max_tokens is None else max(0, min(params.max_tokens, room)),
            submitted=time.monotonic(),
        )

    # ---- the engine's own thread

    def _new_scheduler(self) -> Scheduler:
        return Scheduler(
            BlockPool(self.runner.cache_blocks, self.runner.block_size),
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            restore=self._restore,
            copy=self.runner.copy_block,
        )

    def _restore(self, key: bytes, block: int) -> bool:
        """Fill a cache block from the disk."""
        contents = self._disk.load(key) if self._disk is not None else None
        if contents is None or len(contents) != self.runner.block_bytes:
            return False
        self.runner.write_block(block, contents)
        return True

    def _keep_on_disk(self, sequence: scheduling.Sequence) -> None:
        if (
            self._disk is not None and self._active[sequence].request.adapter is None
        ):  # whose name may change hands
            for key, block in self._scheduler.keys_of(sequence):
                self._disk.save(key, functools.partial(self.runner.read_block, block))

    def _drop_disk(self) -> None:
        disk, self._disk = self._disk, None
        if disk is not None:
            disk.close()

    def _live(self) -> None:
        """The supervisor: steps until closed; a fault that no request owns ends those in flight, nothing else."""
        while not self._closing:
            with self._changed:
                while not (self._stirred or self._scheduler.running or self._scheduler.waiting):
                    self._changed.wait()
                self._stirred = False
            try:
                self._step()
            except Exception as error:
                log.exception("the engine starts anew after a fault in a step")
                self._start_anew(error)
        self._take_inbox()
        for active in list(self._active.values()):
            self._finish(active, "cancelled")
        self._do_jobs()

    def _start_anew(self, error: Exception) -> None:
        self._restarts += 1
        self._scheduler = self._new_scheduler()
        for active in list(self._active.values()):
            active.sequence.block_table.clear()  # they were blocks of the pool that is gone
            active.sequence.status = scheduling.SequenceStatus.FINISHED
            self._finish(active, "error", error=error)

    def _step(self) -> None:
        self._do_jobs()
        self._take_inbox()
        for active in [active for active in self._active.values() if active.handle.cancelled]:
            self._finish(active, "cancelled")
        shares = self._scheduler.schedule()
        self._tell_positions()
        if not shares:
            return
        self._steps += 1
        verified, results = self._run_with_drafts(shares)
        for share, result in zip(verified, results, strict=True):
            active = self._active[share.sequence]
            try:
                if isinstance(result, Exception):
                    raise result
                self._advance(active, share, result)
            except Exception as error:  # this request's own fault: the others go on
                if not isinstance(error, ShoalError):
                    log.exception("request %s failed", active.request.id)
                self._finish(active, "error", error=error)

    def _do_jobs(self) -> None:
        while self._jobs:
            job, done = self._jobs.popleft()
            try:
                job()
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)

    def _take_inbox(self) -> None:
        while self._inbox:
            active = self._inbox.popleft()
            self._active[active.sequence] = active
            self._scheduler.add(active.sequence)

    def _tell_positions(self) -> None:
        now = time.monotonic()
        for position, sequence in enumerate(self._scheduler.waiting):
            active = self._active[sequence]
            if active.started is None and active.position != position:
                active.position = position
                active.handle.put(Queued(position))
        for sequence in self._scheduler.running:
            active = self._active[sequence]
            if active.started is None:
                active.started = now
                done = min(sequence.processed, sequence.prompt_tokens)
                active.handle.put(PromptProgress(done, sequence.prompt_tokens, sequence.cached, 0.0))

    def _run(self, shares: Sequence[Share]) -> Sequence[NDArray[np.float32] | Exception]:
        """The logits of each share. When a step fails, each share is tried alone, to find the one at fault."""
        chunks = [self._chunk(share) for share in shares]
        try:
            return self.runner.run(chunks).logits
        except Exception as error:
            if len(chunks) == 1:
                return [error]
            log.warning("a step of %d requests failed (%s); trying each alone", len(chunks), error)
        results: list[NDArray[np.float32] | Exception] = []
        for chunk in chunks:
            try:
                results.extend(self.runner.run([chunk]).logits)
            except Exception as error:
                results.append(error)
        return results

    def _run_with_drafts(
        self, shares: Sequence[Share]
    ) -> tuple[Sequence[Share], Sequence[NDArray[np.float32] | Exception]]:
        """The step, with drafts where no prompt is read beside; and what it took."""
        speculator, self._step_seconds = self._speculator, (0.0, 0.0)
        decoding = (share.tokens == 1 and self._active[share.sequence].answered for share in shares)
        if speculator is None or not all(decoding):
            return shares, self._run(shares)
        begin = time.perf_counter()
        try:
            shares = self._with_drafts(shares, speculator)
        except Exception:  # answers do not need it
            log.exception("drafting failed and is off from now on")
            self._speculator = None
        drafted = time.perf_counter()
        results = self._run(shares)
        end = time.perf_counter()
        speculator.times.add(sum(1 + len(share.drafts) for share in shares), end - drafted)
        if speculator.times.known(len(shares)):
            self._step_seconds = end - begin, speculator.times.expect(len(shares))
        return shares, results

    def _with_drafts(self, shares: Sequence[Share], speculator: Speculator) -> list[Share]:
        """The decodes of a step, with what is worth being verified behind each of them."""
        rooms = []
        left = self.max_num_batched_tokens - len(shares)
        for share in shares:
            active, each = self._active[share.sequence], left // len(shares)
            if (
                active.request.params.speculate
                and (most := min(active.limit - active.answered - 1, each)) > 0
            ):
                rooms.append((share.sequence, most))
        drafts = speculator.propose(rooms, len(shares), self._scheduler.make_room_for_drafts)
        return [replace(share, drafts=drafts.get(share.sequence, ())) for share in shares]

    def _chunk(self, share: Share) -> Chunk:
        sequence, active = share.sequence, self._active[share.sequence]
        start, end = sequence.processed, sequence.processed + share.tokens
        token_ids = [*sequence.token_ids[start:end], *share.drafts]
        if active.request.params.prompt_logprobs is not None and active.answered == 0:
            logits = share.tokens
        else:
            logits = int(share.completes and active.limit > 0) + len(share.drafts)
        blocks = self._scheduler.pool.blocks_for(start + len(token_ids))
        table, adapter = sequence.block_table[:blocks], active.request.adapter
        return Chunk(token_ids, start, table, logits, adapter=adapter)

    def _advance(self, active: _Active, share: Share, logits: NDArray[np.float32]) -> None:
        """Postprocess: progress while the prompt is read, then a token, and more where drafts were right."""
        sequence, completes = active.sequence, share.completes
        start = sequence.processed
        self._scheduler.advance(sequence, share.tokens)
        sequence.computed += share.tokens + len(share.drafts)
        if active.answered == 0:
            self._prompt_tokens += share.tokens
            if active.request.params.prompt_logprobs is not None:
                self._score_prompt(active, start, logits)
            seconds = time.monotonic() - (active.started or active.submitted)
            active.handle.put(
                PromptProgress(sequence.processed, sequence.prompt_tokens, sequence.cached, seconds)
            )
            if completes and active.request.params.prompt_logprobs is not None:
                active.handle.put(PromptLogprobs(active.prompt_logprobs, active.prompt_top))
        if not completes:
            return
        if active.limit == 0:
            self._finish(active, "length")
            return
        with_drafts, without = self._step_seconds
        active.seconds_with += with_drafts
        active.drafted += len(share.drafts)
        self._draft_tokens += len(share.drafts)
        before = active.accepted
        for row, draft in zip(logits[-1 - len(share.drafts) :], [*share.drafts, None], strict=True):
            sampled = active.sampler.sample(row, sequence.answer_ids, active.request.logits_hook)
            if active.first_token is None:
                active.first_token = time.monotonic()
            sequence.token_ids.append(sampled.token_id)
            self._completion_tokens += 1
            active.seconds_without += without
            right = sampled.token_id == draft
            active.accepted += right
            self._accepted_tokens += right
            self._emit(active, Piece(sampled.token_id, "", sampled.logprob, list(sampled.top)))
            if not right or sequence.status is SequenceStatus.FINISHED:
                break
            self._scheduler.advance(sequence, 1)  # the draft's place in the cache holds what was said
        if self._speculator is not None:
            self._speculator.judged(sequence, len(share.drafts), active.accepted - before)

    def _emit(self, active: _Active, piece: Piece) -> None:
        """Hand out the text that became certain with a token, and end the answer where it ends."""
        detokenizer = active.detokenizer
        if piece.token_id in active.end_ids and active.answered > active.request.params.min_tokens:
            self._put_pieces(active, detokenizer.push_end(piece))
            self._finish(active, "stop", stop=piece.token_id)
            return
        self._put_pieces(active, detokenizer.push(piece))
        if detokenizer.stop is not None:
            self._finish(active, "stop", stop=detokenizer.stop)
        elif active.answered >= active.limit:
            self._finish(active, "length")

    @staticmethod
    def _put_pieces(active: _Active, pieces: list[Piece]) -> None:
        if pieces:
            active.handle.put(Delta(pieces))

    def _score_prompt(self, active: _Active, start: int, logits: NDArray[np.float32]) -> None:
        """Log-probabilities of the prompt's own tokens behind the positions of a chunk."""
        prompt, count = active.request.prompt_ids, active.request.params.prompt_logprobs or 0
        if start == 0:  # also after a preemption: begin again
            active.prompt_logprobs, active.prompt_top = [None], [[]]
        for row, token_id in zip(logits, prompt[start + 1 : start + 1 + len(logits)], strict=False):
            logprobs = log_softmax(row)
            active.prompt_logprobs.append(float(logprobs[token_id]))
            active.prompt_top.append(list(top_logprobs(logprobs, count)))

    def _finish(
        self,
        active: _Active,
        reason: FinishReason,
        *,
        stop: str | int | None = None,
        error: Exception | None = None,
    ) -> None:
        """The one way out: blocks back, what was held back out, `Finished`."""
        self._keep_on_disk(active.sequence)
        self._scheduler.remove(active.sequence)
        del self._active[active.sequence]
        self._finished[reason] += 1
        self._put_pieces(active, active.detokenizer.finish())
        now = time.monotonic()
        started, first = active.started or now, active.first_token or now
        timings = Timings(
            queue_seconds=started - active.submitted,
            prompt_seconds=first - started,
            first_token_seconds=first - active.submitted,
            decode_seconds=now - first,
            draft_gain=active.seconds_without / active.seconds_with
            if active.drafted and active.seconds_with
            else None,
        )
        sequence = active.sequence
        self._cached_tokens += sequence.cached
        usage = Usage(
            sequence.prompt_tokens,
            active.answered,
            sequence.cached,
            computed_tokens=sequence.computed,
            draft_tokens=active.drafted,
            accepted_tokens=active.accepted,
        )
        if self._speculator is not None:
            self._speculator.ended(sequence)
        message = None if error is None else str(error) or type(error).__name__
        active.handle.put(Finished(reason, usage, timings, message, stop))
