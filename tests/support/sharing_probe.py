"""Serve beams and streaming sessions on the real scheduler, and write down what rows share.

    python sharing_probe.py MODEL_FOLDER OUTPUT.json BACKEND '{"enable_streaming_session": true}'

Where the SGLang or the flags have no beams or no sessions, that part is not served. With
`"inject": true` batches are served whose description fails.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import logging
import random
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from inproc_scheduler import InprocScheduler, write_tiny_llama
from step_record import Step, record_step, without_objects

HAS_BEAMS = importlib.util.find_spec("sglang.srt.beam_search") is not None
TRUNK = 48
WIDE_PROMPT = 500
WIDTH = 8


def main(model_folder: str, output: str, backend: str, server_args: str) -> None:
    arguments = json.loads(server_args)
    inject = arguments.pop("inject", False)
    engine = InprocScheduler(write_tiny_llama(Path(model_folder)), backend, **arguments)
    probe = Probe(engine, recording=backend == "codec")
    report: dict[str, Any] = {}
    beams = arguments.get("page_size", 1) == 1 and HAS_BEAMS
    if beams:
        report["beams"] = probe.beams()
    if arguments.get("enable_streaming_session"):
        report["turns"] = probe.sessions()
    report["tokens"] = tokens_of(engine)
    report["prompts"] = {rid: len(req.origin_input_ids) for rid, req in engine.requests.items()}
    if backend == "codec":
        from sglang_codec.patches.fallbacks import FALLBACKS

        report["fallbacks"] = dict(FALLBACKS.counts)
        report["alive"] = probe.alive_after_a_flush()
        if inject:
            report["injected"] = injected(engine, beams=beams)
    Path(output).write_text(json.dumps(report))


class Probe:
    def __init__(self, engine: InprocScheduler, *, recording: bool) -> None:
        self.engine, self.recording = engine, recording
        self._held: dict[str, weakref.ref[Any]] = {}

    def _serve(self) -> list[Step]:
        steps: list[Step] = []

        def on_forward(_: InprocScheduler, forward_batch: Any) -> None:
            if self.recording and forward_batch.forward_mode.is_decode():
                before = steps[-1] if steps else None
                steps.append(record_step(self.engine, forward_batch, before))

        self.engine.run(on_forward)
        for rid, request in self.engine.requests.items():
            self._held[rid] = weakref.ref(request)
        for handle in {handle for step in steps for handle in step["handles"]}:
            if not isinstance(handle, int | None):
                self._held[f"node {handle!r}"] = weakref.ref(handle)
        return without_objects(steps)

    def beams(self) -> list[Step]:
        """Two groups below a warm trunk, the first done before the second, among others; a third
        that is wider than the pool if its members did not share its prompt.
        """
        submit, some = self.engine.submit, source_of_tokens(0)
        trunk = some(TRUNK)
        submit(trunk + some(4), 1, rid="warm")
        self._serve()
        submit(some(12), 9, rid="stranger")
        submit(trunk + some(9), 4, rid="short", beam_width=3)
        submit(trunk + some(7), 8, rid="plain")
        submit(trunk + some(5), 7, rid="long", beam_width=2)
        steps = self._serve()
        submit(some(WIDE_PROMPT), 3, rid="wide", beam_width=WIDTH)
        return steps + self._serve()

    def sessions(self) -> list[list[Step]]:
        """Three turns of two sessions on one trunk, each beside a plain request on it."""
        some, turns = source_of_tokens(1), []
        trunk = some(TRUNK)
        for session in ("a", "b"):
            self.engine.open_session(session)
        for turn in range(3):
            for session in ("a", "b"):
                tokens = [] if turn else trunk
                rid = f"{session}{turn}"
                self.engine.submit(tokens + some(6 + turn), 4, rid=rid, session=session)
            self.engine.submit(trunk + some(5), 4, rid=f"plain{turn}")
            turns.append(self._serve())
        return turns

    def alive_after_a_flush(self) -> list[str]:
        """Requests and tree nodes that something still holds, once their sessions are closed."""
        engine = self.engine
        if engine.server_args.enable_streaming_session:
            for session in ("a", "b"):
                engine.close_session(session)
        engine.requests.clear()
        # the overlapped loop pins its last two batches
        engine.scheduler.batch_record_buf = [None] * 2
        assert engine.scheduler.flush_cache()
        gc.collect()
        return [name for name, held in self._held.items() if held() is not None]


def source_of_tokens(seed: int) -> Callable[[int], list[int]]:
    source = random.Random(seed)
    return lambda count: [source.randrange(3, 500) for _ in range(count)]


def tokens_of(engine: InprocScheduler) -> dict[str, list[list[int]]]:
    """Output ids by request id: one list, or one of each sequence of a beam group."""
    tokens = {}
    for rid, request in engine.requests.items():
        group = getattr(request, "beam_group", None)
        results = [request.output_ids] if group is None else [r.tokens for r in group.final_results]
        tokens[rid] = [list(ids) for ids in results]
    return tokens


def injected(engine: InprocScheduler, *, beams: bool) -> dict[str, Any]:
    """What is served, counted and logged while one stage of attaching raises in every step."""
    from sglang_codec.patches import forward_batch
    from sglang_codec.patches.fallbacks import FALLBACKS
    from sglang_codec.patches.tree_readers import ParentWalkReader

    prompt = [7 + token % 90 for token in range(30)]
    chains = ParentWalkReader.chains

    def with_chains(change: Callable[[list[Any]], list[Any]]) -> Callable[..., Any]:
        return lambda *arguments: iter(change(list(chains(*arguments))))

    def serve() -> list[list[list[int]]]:
        engine.requests.clear()
        for _ in range(2):
            engine.submit(prompt, 4)
        if beams:
            engine.submit(prompt, 4, beam_width=2)
        engine.run()
        return list(tokens_of(engine).values())

    def raising(target: Any, name: str) -> Any:
        error = type("Injected" + name.title().replace("_", ""), (RuntimeError,), {})
        return mock.patch.object(target, name, side_effect=error("injected"))

    stages = {
        "batch": raising(forward_batch, "_speculates"),
        "attacher": raising(forward_batch.Attacher, "codec_batch"),
        "reader": raising(forward_batch, "select_reader"),
        "row states": raising(forward_batch, "row_states_of"),
        "tree": raising(ParentWalkReader, "chains"),
        "fewer chains": mock.patch.object(
            ParentWalkReader, "chains", with_chains(lambda found: found[1:])
        ),
        "more chains": mock.patch.object(
            ParentWalkReader, "chains", with_chains(lambda found: found * 2)
        ),
    }
    if beams:
        stages["beams"] = raising(forward_batch, "beam_rows")
    report = {"clean": {"tokens": serve(), "counts": {}, "logged": []}}
    for name, stage in stages.items():
        with (
            mock.patch.object(forward_batch, "ATTACHER", forward_batch.Attacher()),
            mock.patch.object(FALLBACKS, "counts", type(FALLBACKS.counts)()),
            logged() as messages,
            stage,
        ):
            tokens = serve()
            report[name] = {
                "tokens": tokens,
                "counts": dict(FALLBACKS.counts),
                "logged": [reason for reason in FALLBACKS.counts for m in messages if reason in m],
            }
    return report


@contextmanager
def logged() -> Iterator[list[str]]:
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("sglang_codec")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


if __name__ == "__main__":
    main(*sys.argv[1:])
