"""SGLang's kits that ask a running server, as test cases; what they need is given as attributes."""

from __future__ import annotations

import json
import unittest
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests
from library.servers.sglang_benchmark import stand_in_for_datasets

# what some kits import
stand_in_for_datasets()

# of the text: long prompts for the multi-turn tests, short enough for the model's context
PROMPTS, PROMPT_TOKENS = 4, 1024
# threefold of what SGLang asks of models with billions of weights
KL_THRESHOLD = 0.01


@dataclass(frozen=True, slots=True)
class Target:
    """A running server.

    Args:
        pid: of the process that a kit watches. text: files with text for prompts.
        folder: for files that a kit reads.
    """

    url: str
    pid: int
    model: str
    text: tuple[Path, ...]
    folder: Path


class Watched:
    """A process that somebody else started, as far as the kits ask."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def poll(self) -> int | None:
        try:
            alive = psutil.Process(self._pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            alive = False
        return None if alive else 1


def _case(target: Target, *mixins: type, **attributes: Any) -> type[unittest.TestCase]:
    common = {"base_url": target.url, "model": target.model, "process": Watched(target.pid)}
    return type(mixins[0].__name__, (*mixins, unittest.TestCase), common | attributes)


def _skipped(**reasons: str) -> dict[str, Any]:
    """Tests of a mixin that cannot run here."""

    def skip(reason: str) -> Any:
        return unittest.skip(reason)(lambda _self: None)

    return {name: skip(reason) for name, reason in reasons.items()}


def _tokenizer(target: Target) -> Any:
    from sglang.srt.utils.hf_transformers_utils import get_tokenizer

    return get_tokenizer(target.model)


def _text(target: Target) -> str:
    return "\n".join(path.read_text() for path in target.text)


def basic_decode_correctness(target: Target) -> type[unittest.TestCase]:
    from sglang.test.kits.basic_decode_correctness_kit import BasicDecodeCorrectnessMixin

    return _case(target, BasicDecodeCorrectnessMixin)


def basic_scheduler_stress(target: Target) -> type[unittest.TestCase]:
    from sglang.test.kits.basic_scheduler_stress_kit import BasicSchedulerStressMixin

    return _case(target, BasicSchedulerStressMixin)


def cache_hit(target: Target) -> type[unittest.TestCase]:
    from sglang.test.kits.cache_hit_kit import run_multiturn_cache_hit_test

    # in the form of the data set that it would download
    lines = [line for line in _text(target).split("\n\n") if line.strip()]
    turns = [{"conversations": [{"value": line}, {"value": "Yes."}]} for line in lines]
    dataset = target.folder / "conversations.json"
    dataset.write_text(json.dumps(turns))

    class CacheHit(unittest.TestCase):
        def test_multiturn_cache_hit(self) -> None:
            run_multiturn_cache_hit_test(target.url, target.model, dataset_path=str(dataset))

    return CacheHit


def prefix_cache_branching(target: Target) -> type[unittest.TestCase]:
    from sglang.test.kits.prefix_cache_branching_kit import PrefixCacheBranchingMixin

    def flush_cache(_cls: type) -> None:
        requests.post(f"{target.url}/flush_cache", timeout=30).raise_for_status()

    flush = classmethod(flush_cache)
    return _case(target, PrefixCacheBranchingMixin, cache_chunk_size=64, flush_cache=flush)


def radix_cache_server(target: Target) -> type[unittest.TestCase]:
    from sglang.test.kits.radix_cache_server_kit import run_radix_attention_test

    class RadixCacheServer(unittest.TestCase):
        def test_run_radix_attention_test(self) -> None:
            run_radix_attention_test(target.url)

    return RadixCacheServer


def unified_radix_cache(target: Target) -> type[unittest.TestCase]:
    from sglang.test.kits.unified_radix_cache_kit import UnifiedRadixTreeTestMixin

    ids = _tokenizer(target).encode(_text(target))
    needed = PROMPTS * PROMPT_TOKENS
    ids = (ids * (1 + needed // max(len(ids), 1)))[:needed]
    prompts = [ids[i : i + PROMPT_TOKENS] for i in range(0, needed, PROMPT_TOKENS)]
    skipped = _skipped(test_gsm8k="downloads GSM8K, and asks for 93% right answers")
    return _case(
        target,
        UnifiedRadixTreeTestMixin,
        input_ids=prompts,
        kl_threshold=KL_THRESHOLD,
        **skipped,
    )


def streaming_session(target: Target) -> type[unittest.TestCase]:
    from sglang.test.kits.streaming_session_kit import StreamingSessionKitMixin

    return _case(target, StreamingSessionKitMixin, tokenizer=_tokenizer(target))


def streaming_session_aborts(target: Target) -> type[unittest.TestCase]:
    from sglang.test.kits.streaming_session_kit import AbortLeakReproKitMixin

    return _case(target, AbortLeakReproKitMixin, tokenizer=_tokenizer(target))


def pause_generation(target: Target) -> type[unittest.TestCase]:
    from sglang.test.kits.pause_generation_kit import PauseResumeInPlaceMixin

    # a small model would be done before the pause
    return _case(
        target, PauseResumeInPlaceMixin, pause_max_new_tokens=4096, pause_ignore_eos=True
    )


def abort_all(target: Target) -> type[unittest.TestCase]:
    from sglang.test.kits.abort_timeout_kit import AbortAllMixin

    return _case(target, AbortAllMixin)


def waiting_timeout(target: Target) -> type[unittest.TestCase]:
    from sglang.test.kits.abort_timeout_kit import WaitingTimeoutMixin

    return _case(target, WaitingTimeoutMixin)


def running_timeout(target: Target) -> type[unittest.TestCase]:
    from sglang.test.kits.abort_timeout_kit import RunningTimeoutTwoWaveMixin

    # long enough that a small model is interrupted
    return _case(target, RunningTimeoutTwoWaveMixin, running_timeout_max_new_tokens=4096)
