"""Patches take hold exactly once or raise, and do what they say."""

from __future__ import annotations

import gc
import sys
import types
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from sglang_versions import VERSIONS
from warm_python import run_warm

from sglang_codec.patches import forward_batch as forward_batch_patch
from sglang_codec.patches.eager_view import keep_codec_batch
from sglang_codec.patches.fallbacks import FALLBACKS
from sglang_codec.patches.forward_batch import Attacher, attach_codec_batch
from sglang_codec.patches.ngram_chains import CHAIN_DRAFTS, chain_drafts
from sglang_codec.patches.patch import Patch
from sglang_codec.patches.registry import (
    PATCHES,
    REPORT_PATCHES,
    PatchError,
    apply_patches,
    spare_unread_masks,
    times_applied,
)
from sglang_codec.patches.replay_view import copy_codec_batch

MODULE = "module_under_patch"


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    hooks, patched = dict(HookRegistry._hooks), set(HookRegistry._patched)
    yield
    for target in set(HookRegistry._hooks) - set(hooks):
        del HookRegistry._hooks[target]
    HookRegistry._patched &= patched


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType(MODULE)

    class Box:
        @classmethod
        def make(cls, value: int) -> list[int]:
            return [value]

    module.Box = Box
    monkeypatch.setitem(sys.modules, MODULE, module)
    return module


def patch_of(attribute: str, apply: Any, hook: HookType = HookType.AFTER) -> Patch:
    return Patch(f"{MODULE}.{attribute}", hook, apply, "a reason", "a fact", "a condition")


def test_targets_exist_and_are_wrapped_once() -> None:
    apply_patches()
    apply_patches()
    assert [times_applied(patch) for patch in PATCHES] == [1] * len(PATCHES)


@pytest.mark.parametrize(
    "patch",
    [*PATCHES, *REPORT_PATCHES, CHAIN_DRAFTS],
    ids=lambda patch: patch.target.rsplit(".", 1)[-1],
)
def test_every_patch_brings_its_reason_and_its_end(patch: Patch) -> None:
    assert patch.target.startswith("sglang.srt.")
    assert patch.why
    assert patch.upstream
    assert patch.remove_when


def test_hook_runs_once_on_a_classmethod(module: types.ModuleType) -> None:
    def add(result: list[int], cls: type, value: int) -> None:
        result.append(value + 1)

    patch = patch_of("Box.make", add)
    apply_patches([patch])
    apply_patches([patch])
    assert module.Box.make(1) == [1, 2]


def test_a_hook_of_another_plugin_keeps_running_once(module: types.ModuleType) -> None:
    HookRegistry.register(f"{MODULE}.Box.make", lambda result, *_: result.append("theirs"))
    HookRegistry.apply_hooks()
    apply_patches([patch_of("Box.make", lambda result, *_: result.append("ours"))])
    HookRegistry.apply_hooks()
    assert module.Box.make(1) == [1, "theirs", "ours"]


@pytest.mark.parametrize("attribute", ["Box.gone", "Gone.make"])
def test_a_missing_target_raises(module: types.ModuleType, attribute: str) -> None:
    with pytest.raises(PatchError, match=rf"no {MODULE}\.{attribute}, which codec needs: a reason"):
        apply_patches([patch_of(attribute, lambda *_: None)])


def test_a_hook_that_sglang_only_logs_raises(module: types.ModuleType) -> None:
    # a class can only be replaced: the registry logs that and goes on
    with pytest.raises(PatchError, match="applied 0 times instead of once"):
        apply_patches([patch_of("Box", lambda *_: None)])


# what the hooks do -----------------------------------------------------------------------------


class Request(SimpleNamespace):
    """Like SGLang's, two requests are never equal."""

    __eq__, __hash__ = object.__eq__, object.__hash__


def request(rid: str, handle: Any = None, **kv: Any) -> Request:
    kv = {"cache_protected_len": 0, "req_pool_idx": 0} | kv
    return Request(rid=rid, last_node=handle, retraction_count=0, kv=SimpleNamespace(**kv))


def decode_batch(*rids: str, rows: int | None = None) -> SimpleNamespace:
    return SimpleNamespace(
        reqs=[request(rid) for rid in rids],
        seq_lens=[1] * (rows or len(rids)),
        decoding_reqs=None,
        spec_algorithm=None,
        tree_cache=SimpleNamespace(disable=True),
    )


def forward_batch(*, decode: bool = True, verify: bool = False) -> SimpleNamespace:
    mode = SimpleNamespace(
        is_decode=lambda: decode and not verify,
        is_extend=lambda: verify or not decode,  # as SGLang has it
        is_target_verify=lambda: verify,
    )
    return SimpleNamespace(forward_mode=mode)


RUNNER = SimpleNamespace(is_draft_worker=False)


@pytest.fixture(autouse=True)
def _attacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_batch_patch, "ATTACHER", Attacher())
    monkeypatch.setattr(FALLBACKS, "counts", type(FALLBACKS.counts)())


def test_a_decode_batch_gets_paths() -> None:
    batch, view = decode_batch("a", "b"), forward_batch()
    attach_codec_batch(view, type, batch, RUNNER)
    assert view.codec_batch.rows == 2
    assert view.codec_batch.reader_name == "none (radix cache disabled)"
    assert view.codec_batch.read().leaf.tolist() == [-1, -1]
    assert not FALLBACKS.counts


def test_other_batches_get_nothing() -> None:
    speculative = decode_batch("a")
    speculative.spec_algorithm = SimpleNamespace(is_none=lambda: False)
    speculative.decoding_reqs = speculative.reqs
    for view, batch, runner in (
        (forward_batch(decode=False), decode_batch("a"), RUNNER),
        (forward_batch(), decode_batch("a"), SimpleNamespace(is_draft_worker=True)),
        (forward_batch(), speculative, RUNNER),
        (forward_batch(), decode_batch(), RUNNER),
        (forward_batch(decode=False), speculative, RUNNER),
    ):
        attach_codec_batch(view, type, batch, runner)
        assert not hasattr(view, "codec_batch")


def speculative_batch(*rids: str, host_knows: bool = False) -> SimpleNamespace:
    batch = decode_batch(*rids)
    batch.spec_algorithm = SimpleNamespace(is_none=lambda: False, is_dflash=lambda: False)
    batch.seq_lens_cpu = [1] * len(rids) if host_knows else None
    for nth, req in enumerate(batch.reqs):
        req.kv.kv_committed_len = 40 + nth
    return batch


def attached(batch: SimpleNamespace, view: SimpleNamespace) -> Any:
    attach_codec_batch(view, type, batch, RUNNER)
    return getattr(view, "codec_batch", "nothing")


def test_a_verified_batch_gets_paths_and_what_the_host_knows_of_its_lengths() -> None:
    lagging = speculative_batch("a", "b")
    described = attached(lagging, forward_batch(verify=True))
    assert (described.rows, described.least_lengths.tolist()) == (2, [40, 41])
    old = speculative_batch("a", "b")  # as 0.5.17 has them
    for req in old.reqs:
        req.kv_committed_len = req.kv.kv_committed_len + 1
    assert attached(old, forward_batch(verify=True)).least_lengths.tolist() == [41, 42]
    known = speculative_batch("a", host_knows=True)
    assert attached(known, forward_batch(verify=True)).least_lengths is None
    known.spec_algorithm.is_dflash = lambda: True  # which tells what is allocated
    assert attached(known, forward_batch(verify=True)).least_lengths.tolist() == [40]
    assert not FALLBACKS.counts


@pytest.mark.parametrize("decodes", [True, False])
def test_rows_that_grew_without_being_verified_are_others_than_before(decodes: bool) -> None:
    """Beside a prompt they decode one token, whose slot codec does not see."""
    batch, signatures = speculative_batch("a", "b"), []
    for _ in range(2):
        described = attached(batch, forward_batch(verify=True))
        signatures.append(described.signature)
    assert signatures[0] == signatures[1]
    batch.decoding_reqs = batch.reqs
    assert attached(batch, forward_batch(decode=decodes)) == "nothing"
    assert sum(FALLBACKS.counts.values()) == 1
    described = attached(batch, forward_batch(verify=True))
    assert described.signature != signatures[0]
    assert described.moved_since(signatures[0]) is None


def test_short_ngram_drafts_are_chains() -> None:
    """Zeros fill a draft up; what is drafted beside them would see another past than they do."""
    tokens = np.array([7, 8, 0, 0, 5, 6, 9, 4])
    filled = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]])
    mask = np.concatenate([filled.ravel(), np.tri(4, dtype=int).ravel()])
    found, chains = chain_drafts((tokens, mask), "corpus")
    assert found is tokens
    assert chains.dtype == mask.dtype
    assert (chains.reshape(2, 4, 4) == np.tri(4)).all()
    assert np.array_equal(chain_drafts((tokens[:0], mask[:0]))[1], mask[:0])


MASK = """
from sglang_codec.patches.registry import fit_to_speculation
from sglang.srt.layers.attention.hybrid_attn_backend import HybridAttnBackend
from sglang.srt.speculative.dflash_utils import resolve_dflash_verify_mask_policy as policy
from sglang_codec.backend import CodecDecodeBackend
hybrid = object.__new__(HybridAttnBackend)
hybrid.decode_backend = object.__new__(CodecDecodeBackend)
hybrid.spec_attn_is_decode = True
before = policy(hybrid)[1]
fit_to_speculation("EAGLE")
assert before and policy(hybrid)[1]
fit_to_speculation("DFLASH")
assert not policy(hybrid)[1]
"""


@pytest.mark.parametrize("version", VERSIONS)
def test_block_drafts_are_verified_without_a_mask(version: str, tmp_path: Path) -> None:
    (program := tmp_path / "mask.py").write_text(MASK)
    done = run_warm(program, sglang=version)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("algorithm", "watermark", "full"),
    [("NGRAM", None, False), ("NGRAM", object(), True), ("EAGLE", None, True), (None, None, True)],
)
def test_n_grams_go_without_a_mask_that_no_one_reads(
    algorithm: str | None, watermark: Any, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker: Any = types.ModuleType("sglang.srt.speculative.ngram_worker")
    worker.USE_FULL_MASK = True
    monkeypatch.setitem(sys.modules, worker.__name__, worker)
    arguments = SimpleNamespace(speculative_algorithm=algorithm)
    spare_unread_masks(SimpleNamespace(server_args=arguments, watermark_state=watermark))
    assert worker.USE_FULL_MASK is full


def mixed_batch(prompts: int, *rids: str) -> tuple[SimpleNamespace, SimpleNamespace]:
    batch = decode_batch(*rids)
    batch.decoding_reqs = batch.reqs[prompts:]
    return batch, forward_batch(decode=False)


def test_of_a_mixed_batch_the_rows_that_decode_are_described() -> None:
    batch, view = mixed_batch(2, "prompt", "other prompt", "a", "b", "c")
    attach_codec_batch(view, type, batch, RUNNER)
    assert not hasattr(view, "codec_batch")
    assert sum(FALLBACKS.counts.values()) == 1
    forward_batch_patch.ATTACHER.mixed_batches_are_served = True
    attach_codec_batch(view, type, batch, RUNNER)
    described = view.codec_batch
    assert (described.prompts, described.rows) == (2, 3)
    assert [ref().rid for ref in described.signature[1][0]] == ["a", "b", "c"]
    # it is the same batch as when no one prefills beside it
    alone = decode_batch()
    alone.reqs, alone.seq_lens = batch.reqs[2:], [1] * 3
    assert codec_batch_of(alone).signature == described.signature
    assert codec_batch_of(alone).prompts == 0
    # or when SGLang has it look like a prefill for other data-parallel ranks
    alone.decoding_reqs, view = alone.reqs, forward_batch(decode=False)
    attach_codec_batch(view, type, alone, RUNNER)
    assert (view.codec_batch.prompts, view.codec_batch.rows) == (0, 3)
    assert sum(FALLBACKS.counts.values()) == 1


@pytest.mark.parametrize("alter", ["order", "others", "rows"])
def test_a_mixed_batch_in_another_order_is_not_described(alter: str) -> None:
    batch, view = mixed_batch(1, "prompt", "a", "b")
    forward_batch_patch.ATTACHER.mixed_batches_are_served = True
    if alter == "order":
        batch.reqs.reverse()
    elif alter == "others":
        batch.decoding_reqs = [request("a"), request("b")]
    else:
        batch.seq_lens.append(1)
    attach_codec_batch(view, type, batch, RUNNER)
    assert view.codec_batch is None
    assert dict(FALLBACKS.counts) == {"describing the batch failed with ValueError": 1}


def test_a_batch_that_cannot_be_described_is_private_and_counted() -> None:
    batch, view = decode_batch("a"), forward_batch()
    del batch.reqs[0].retraction_count
    attach_codec_batch(view, type, batch, RUNNER)
    assert view.codec_batch is None
    assert dict(FALLBACKS.counts) == {"describing the batch failed with AttributeError": 1}


def test_signature_follows_what_matters() -> None:
    def signature(batch: SimpleNamespace) -> Any:
        view = forward_batch()
        attach_codec_batch(view, type, batch, RUNNER)
        return view.codec_batch.signature

    batch = decode_batch("a", "b")
    base = signature(batch)
    assert base == signature(batch)
    first, second = batch.reqs
    batch.reqs = [second, first]
    assert signature(batch) != base
    # a finished request's id may come back, and with it the row and the node, but not the KV slots
    batch.reqs = [request("a"), second]
    assert signature(batch) != base
    batch.reqs = [first, second]
    for owner, change in (
        (first, "last_node"),
        (first, "retraction_count"),
        (second.kv, "cache_protected_len"),
        (second.kv, "req_pool_idx"),
    ):
        before = getattr(owner, change)
        setattr(owner, change, 7)
        assert signature(batch) != base
        setattr(owner, change, before)
    assert signature(batch) == base


def codec_batch_of(batch: SimpleNamespace) -> Any:
    view = forward_batch()
    attach_codec_batch(view, type, batch, RUNNER)
    return view.codec_batch


def test_moved_rows_are_those_whose_place_in_the_tree_changed() -> None:
    batch = decode_batch("a", "b", "c")
    base = codec_batch_of(batch).signature
    assert codec_batch_of(batch).moved_since(base) == []
    batch.reqs[2].last_node = 7
    batch.reqs[0].kv.cache_protected_len = 7
    assert codec_batch_of(batch).moved_since(base) == [0, 2]
    for other in (decode_batch("a", "b", "c"), decode_batch("a", "b")):
        assert codec_batch_of(other).moved_since(base) is None
    for owner, change in ((batch.reqs[1], "retraction_count"), (batch.reqs[1].kv, "req_pool_idx")):
        setattr(owner, change, 7)
        assert codec_batch_of(batch).moved_since(base) is None
        setattr(owner, change, 0)
    with_beams = decode_batch("a", rows=2)
    assert codec_batch_of(with_beams).moved_since(codec_batch_of(with_beams).signature) is None


def test_a_batch_with_rows_beyond_the_requests_is_never_the_same() -> None:
    """The device may permute them between any two steps, which the host does not see."""
    batch = decode_batch("leader", rows=3)
    first, second = codec_batch_of(batch), codec_batch_of(batch)
    assert first.signature != second.signature
    assert first.read().leaf.tolist() == [-1, -1, -1]


def test_members_of_a_beam_group_read_their_leaders_prompt() -> None:
    batch = decode_batch("a", "leader", rows=5)
    group = SimpleNamespace(leader=batch.reqs[1], prompt_len=12)
    entry = SimpleNamespace(group=group, leader_idx=1, start=0, end=2)
    batch.beam_tail = SimpleNamespace(num_base_rows=2, entries=[entry])
    paths = codec_batch_of(batch).read()
    assert (paths.end.tolist(), paths.leaf.tolist()) == ([12], [-1, 0, 0, 0, -1])


class Node:
    """A tree node as a handle."""


def test_a_signature_keeps_nothing_alive() -> None:
    batch = decode_batch("a")
    batch.reqs[0].last_node = Node()
    batch.reqs[0].kv.cache_protected_len = 4
    held = codec_batch_of(batch)
    refs = weakref.ref(batch.reqs[0]), weakref.ref(batch.reqs[0].last_node)
    assert held.signature == codec_batch_of(batch).signature
    batch.reqs.clear()
    gc.collect()
    assert [ref() for ref in refs] == [None, None]
    assert held.read().leaf.tolist() == [-1]
    assert held.signature == held.signature


def test_a_new_request_at_a_dead_ones_address_is_another() -> None:
    class Bare:
        """Small, so that one made soon takes its place in memory."""

        last_node, retraction_count, kv = None, 0, request("a").kv

    batch = decode_batch()
    batch.reqs, batch.seq_lens = [Bare()], [1]
    dead, address = codec_batch_of(batch).signature, id(batch.reqs[0])
    batch.reqs.clear()
    made = [Bare()]
    while id(made[-1]) != address and len(made) < 10_000:
        made.append(Bare())  # until one has its place
    batch.reqs.append(made[-1])
    assert id(batch.reqs[0]) == address
    assert codec_batch_of(batch).signature != dead


def test_views_carry_the_batch() -> None:
    source, marker = SimpleNamespace(codec_batch=object()), SimpleNamespace()
    replay, eager = SimpleNamespace(), SimpleNamespace()
    copy_codec_batch(replay, forward_batch=source)
    keep_codec_batch(eager, object(), source, None)
    assert replay.codec_batch is source.codec_batch
    assert eager.codec_batch is source.codec_batch
    copy_codec_batch(replay, forward_batch=marker)
    assert replay.codec_batch is None
