"""The in-process scheduler under a traffic that changes its batch at every step."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from churning.traffic import Ask, Traffic
from inproc_scheduler import InprocScheduler

STEPS_LIMIT = 1_000_000


class ObservedScheduler(InprocScheduler):
    """Requests with log-probabilities, aborts, and a hook where SGLang receives requests.

    `modes` counts the forward passes by their mode. With log-probabilities SGLang mixes no chunks
    into decode batches, so `logprobs` can be False.
    """

    def __init__(self, *args: Any, logprobs: bool = True, **kwargs: Any) -> None:
        self.between_steps: Callable[[], None] = lambda: None
        self.modes: Counter[str] = Counter()
        self._hidden_slots: Any = None
        super().__init__(*args, **kwargs)
        handle = self.scheduler.handle_generate_request

        def with_logprobs(request: Any) -> Any:
            request.return_logprob = logprobs
            return handle(request)

        self.scheduler.handle_generate_request = with_logprobs

    @property
    def unfinished(self) -> list[Any]:
        return [request for request in self.requests.values() if not request.finished()]

    @property
    def is_drained(self) -> bool:
        """Nothing is queued, runs, or waits for its result."""
        return not self.unfinished and self.scheduler.last_batch is None

    def abort(self, rid: str) -> None:
        from sglang.srt.managers.io_struct import AbortReq

        if any(request.rid == rid for request in self.scheduler.waiting_queue):
            # SGLang drops it without finishing it: nobody may wait for it
            del self.requests[rid]
        self.scheduler.abort_request(AbortReq(rid=rid))

    def hide_slots_while_decoding(self) -> None:
        """`req_to_token` holds nothing from the end of the host's part of a decode step to its end.

        A GPU is still computing when the scheduler gives a finished request's row to the next one;
        here the forward pass is over by then, and only this shows that it reads no such row.
        """
        backend = self.decode_backend
        prepare = backend.init_forward_metadata_out_graph

        def prepare_and_hide(*args: Any, **kwargs: Any) -> None:
            prepare(*args, **kwargs)
            self._hidden_slots = self.req_to_token.clone()
            self.req_to_token.zero_()

        backend.init_forward_metadata_out_graph = prepare_and_hide

    def serve(self) -> None:
        """Until nothing is left to do."""
        runner, forward = self.model_runner, self.model_runner.forward

        def observed(forward_batch: Any, *args: Any, **kwargs: Any) -> Any:
            self.modes[forward_batch.forward_mode.name] += 1
            try:
                return forward(forward_batch, *args, **kwargs)
            finally:
                if self._hidden_slots is not None:
                    self.req_to_token.copy_(self._hidden_slots)
                    self._hidden_slots = None

        runner.forward = observed
        try:
            self._loop(STEPS_LIMIT)
        finally:
            del runner.forward

    def levels(self) -> dict[str, int]:
        """What is free, and what the tree holds; after an idle step these are all there is."""
        scheduler = self.scheduler
        return {
            "kv_free": scheduler.token_to_kv_pool_allocator.available_size(),
            "kv_in_tree": int(scheduler.tree_cache.evictable_size()),
            "kv_locked": int(scheduler.tree_cache.protected_size()),
            "rows_free": scheduler.req_to_token_pool.available_size(),
        }

    def _replace_receiver(self) -> None:
        super()._replace_receiver()
        owner, name = self.scheduler, "ingest_requests"
        if not hasattr(owner, name):
            owner, name = owner.request_receiver, "recv_requests"
        receive = getattr(owner, name)

        def observed(*args: Any, **kwargs: Any) -> Any:
            self.between_steps()
            return receive(*args, **kwargs)

        setattr(owner, name, observed)


@dataclass
class Answer:
    """What came of a request; its tokens count up to the abort if there was one."""

    ask: Ask
    request: Any
    aborted: bool = False

    @property
    def output_ids(self) -> list[int]:
        # drafts may be accepted beyond the last token that is wanted
        return list(self.request.output_ids)[: self.ask.max_new_tokens]

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.ask.name,
            "input_ids": list(self.ask.input_ids),
            "output_ids": self.output_ids,
            "logprobs": list(self.request.logprob.output_token_logprobs_val or []),
            "wanted": self.ask.max_new_tokens,
            "aborted": self.aborted,
            "retractions": self.request.retraction_count,
        }


@dataclass
class Churn:
    """Feeds a scheduler until enough requests were served.

    Args:
        requests: how many. most: largest number of unfinished requests; the wanted number walks
            between 0 and it. flush_every: requests between two flushes of the cache.
    """

    engine: ObservedScheduler
    traffic: Traffic
    requests: int
    most: int
    flush_every: int
    seed: int = 0
    answers: list[Answer] = field(default_factory=list)
    levels: list[tuple[dict[str, int], dict[str, int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._asks: Iterator[Ask] = iter(self.traffic)
        self._live: dict[str, Answer] = {}
        self._wanted = self.most
        self._until_flush = self.flush_every

    def run(self) -> None:
        """Until everything is served; afterwards the cache has been flushed."""
        self.engine.between_steps = self._step
        while len(self.answers) < self.requests:
            self._until_flush = min(self.flush_every, self.requests - len(self.answers))
            self._step()
            self.engine.serve()
            self._flush()
        self.engine.between_steps = lambda: None

    def come_back_at_once(self) -> None:
        """One client asks again under its old id, with other tokens, alone.

        Its prompt is as long as the row that its last answer left, or one token longer; what is
        cached in between takes the KV slots that this answer freed.
        """
        length, new = 3, 4
        for count in range(4):
            for name, prompt, output in (("same", length, new), (f"other {count}", 40, 1)):
                self._submit(Ask(name, "again", self.traffic.tokens(prompt), output))
                self.engine.serve()
                self._collect()
            length += new - count % 2
        self._flush()

    def pass_by(self) -> None:
        """Requests of one token come and go: the batch of the one that stays is never another.

        With mixed chunks, that one gets tokens in steps of both kinds.
        """
        self._submit(Ask("stays", "passed", self.traffic.tokens(30), 24))
        stays, steps = self._live["stays"], itertools.count()

        def step() -> None:
            self._collect()
            count = next(steps)
            if count % 3 == 0 and not stays.request.finished():
                self._submit(Ask(f"passes {count}", "passing", self.traffic.tokens(20), 1))

        self.engine.between_steps = step
        self.engine.serve()
        self.engine.between_steps = lambda: None
        self._flush()

    def _step(self) -> None:
        self._collect()
        self._abort()
        if self._random.random() < 0.15:
            self._wanted = self._random.randint(0, self.most)
        # an idle loop would end: the last request of a lull brings the next one
        wanted = max(self._wanted, 1)
        while self._until_flush and len(self._live) < wanted:
            self._until_flush -= 1
            self._submit(next(self._asks))

    def _submit(self, ask: Ask) -> None:
        self.engine.submit(ask.input_ids, ask.max_new_tokens, rid=ask.name)
        answer = Answer(ask, self.engine.requests[ask.name])
        self._live[ask.name] = answer
        self.answers.append(answer)

    def _collect(self) -> None:
        for name, answer in list(self._live.items()):
            if answer.request.finished() or name not in self.engine.requests:
                del self._live[name]
                self.engine.requests.pop(name, None)
                self.traffic.finished(answer.ask, answer.output_ids)

    def _abort(self) -> None:
        for name, answer in self._live.items():
            after = answer.ask.abort_after
            if after is not None and not answer.aborted and len(answer.output_ids) >= after:
                answer.aborted = True
                self.engine.abort(name)

    def _flush(self) -> None:
        self._collect()
        if not self.engine.is_drained or self._live:
            raise RuntimeError(f"requests never ended: {sorted(self._live)}")
        before = self.engine.levels()
        if not self.engine.scheduler.flush_cache():
            raise RuntimeError("SGLang refused to flush its cache: something is still running")
        self.levels.append((before, self.engine.levels()))
