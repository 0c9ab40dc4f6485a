"""SGLang's kits that ask a running server, as test cases; what they need is given as attributes."""

from __future__ import annotations

import json
import unittest
from dataclasses import dataclass, field
from importlib import import_module
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


@dataclass(frozen=True, slots=True)
class Mixin:
    """A test case of one of SGLang's mixins.

    Args:
        module: in `sglang.test.kits`.
        tokenizer: whether its tests use the model's.
        attributes: what else its tests read.
    """

    module: str
    name: str
    tokenizer: bool = False
    attributes: dict[str, Any] = field(default_factory=dict)

    def __call__(self, target: Target) -> type[unittest.TestCase]:
        mixin = getattr(import_module(f"sglang.test.kits.{self.module}"), self.name)
        common = {"base_url": target.url, "model": target.model, "process": Watched(target.pid)}
        if self.tokenizer:
            common["tokenizer"] = _tokenizer(target)
        return type(self.name, (mixin, unittest.TestCase), common | self.attributes)


def _tokenizer(target: Target) -> Any:
    from sglang.srt.utils.hf_transformers_utils import get_tokenizer

    return get_tokenizer(target.model)


def _text(target: Target) -> str:
    return "\n".join(path.read_text() for path in target.text)


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
    def flush_cache(_cls: type) -> None:
        requests.post(f"{target.url}/flush_cache", timeout=30).raise_for_status()

    own = {"cache_chunk_size": 64, "flush_cache": classmethod(flush_cache)}
    kit = Mixin("prefix_cache_branching_kit", "PrefixCacheBranchingMixin", attributes=own)
    return kit(target)


def radix_cache_server(target: Target) -> type[unittest.TestCase]:
    from sglang.test.kits.radix_cache_server_kit import run_radix_attention_test

    class RadixCacheServer(unittest.TestCase):
        def test_run_radix_attention_test(self) -> None:
            run_radix_attention_test(target.url)

    return RadixCacheServer


def unified_radix_cache(target: Target) -> type[unittest.TestCase]:
    ids = _tokenizer(target).encode(_text(target))
    needed = PROMPTS * PROMPT_TOKENS
    ids = (ids * (1 + needed // max(len(ids), 1)))[:needed]
    prompts = [ids[i : i + PROMPT_TOKENS] for i in range(0, needed, PROMPT_TOKENS)]
    skip = unittest.skip("downloads GSM8K, and asks for 93% right answers")
    own = {"input_ids": prompts, "kl_threshold": KL_THRESHOLD}
    own["test_gsm8k"] = skip(lambda _self: None)
    return Mixin("unified_radix_cache_kit", "UnifiedRadixTreeTestMixin", attributes=own)(target)
