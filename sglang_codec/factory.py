"""SGLang's backend factory: refusals, patches, the decode child, the hybrid, the banner."""

from __future__ import annotations

import functools
import importlib.util
import logging
from typing import TYPE_CHECKING, Any

import torch

from sglang_codec import __version__
from sglang_codec.config import BACKEND_NAME, CodecConfig
from sglang_codec.graph_sizes import decode_graphs
from sglang_codec.known_settings import unknown_settings
from sglang_codec.refusals import UnsupportedConfiguration, check_supported
from sglang_codec.settings import setting
from sglang_codec.speculation import query_rows
from sglang_codec.versions import require_supported

if TYPE_CHECKING:
    from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
    from sglang.srt.model_executor.model_runner import ModelRunner

    from sglang_codec.backend import CodecDecodeBackend

logger = logging.getLogger(__name__)

# stock backends that round softmax weights to the dtype of V whatever the group: where SGLang would
# decode with one, exacter weights would cost time that it does not spend
_ROUNDING = frozenset({"fa3"})


def create_backend(model_runner: ModelRunner) -> AttentionBackend:
    """The attention backend for `codec`: a decode child, and a stock prefill where needed.

    SGLang builds the hybrid itself when the prefill backend has another name, as it has once
    `patches.backend_names` has read the arguments. For a runner whose names are both `codec`, this
    builds it.
    """
    config = CodecConfig.from_env()
    sglang_version = require_supported(allow_untested=config.allow_untested_sglang)
    check_supported(model_runner)
    _check_settings(model_runner, config)
    prefill, decode = attention_backend_names(model_runner)
    if decode != BACKEND_NAME:
        raise UnsupportedConfiguration(
            f"codec: --prefill-attention-backend {prefill} with --decode-attention-backend {decode}"
            f" asks codec to prefill, and it only decodes; use --decode-attention-backend codec"
        )
    stock = prefill
    if prefill == BACKEND_NAME:
        stock = config.prefill_backend or default_prefill_backend(model_runner)
    _check_stock_backend(stock)

    from sglang_codec.patches.forward_batch import ATTACHER
    from sglang_codec.patches.registry import apply_patches, fit_to_speculation
    from sglang_codec.patches.tree_core import prefer_readable_tree_core

    apply_patches()
    fit_to_speculation(setting(model_runner, "speculative_algorithm"))
    prefer_readable_tree_core()

    from sglang_codec.backend import CodecDecodeBackend

    ordinary = functools.cache(functools.partial(_build_stock_backend, model_runner, stock))
    is_exact = stock not in _ROUNDING
    decode_child = CodecDecodeBackend(model_runner, config, ordinary, exact_weights=is_exact)
    ATTACHER.most_kept = decode_child.planner.most_live
    logger.info(banner(model_runner, decode_child, sglang_version, stock))
    _report(decode_child)
    _look_at_a_step(model_runner, decode_child)
    if prefill != BACKEND_NAME:
        return decode_child
    from sglang.srt.layers.attention.hybrid_attn_backend import HybridAttnBackend

    return HybridAttnBackend(
        model_runner=model_runner,
        prefill_backend=_build_stock_backend(model_runner, stock),
        decode_backend=decode_child,
    )


def attention_backend_names(model_runner: ModelRunner) -> tuple[str, str]:
    """Names of the prefill and the decode backend that this runner asks for."""
    prefill = getattr(model_runner, "prefill_attention_backend_str", None)
    decode = getattr(model_runner, "decode_attention_backend_str", None)
    if prefill is None or decode is None:
        # 0.5.17 puts the names on the runner only after it has built the backends
        prefill, decode = model_runner.server_args.get_attention_backends()
    return prefill, decode


def default_prefill_backend(model_runner: ModelRunner) -> str:
    """SGLang's fastest general backend for this machine."""
    if model_runner.device == "cpu":
        return "torch_native"
    capability = torch.cuda.get_device_capability(model_runner.gpu_id)
    has_fa3 = capability[0] == 9 and importlib.util.find_spec("sgl_kernel")
    # which has no e5m2
    if has_fa3 and model_runner.kv_cache_dtype != torch.float8_e5m2:
        return "fa3"
    return "flashinfer" if importlib.util.find_spec("flashinfer") else "triton"


def banner(
    model_runner: ModelRunner, backend: CodecDecodeBackend, sglang_version: str, prefill: str
) -> str:
    """One line that says what runs and within which limits."""
    if model_runner.device == "cpu":
        device = "CPU (Triton interpreter)"
    else:
        index = model_runner.gpu_id
        major, minor = torch.cuda.get_device_capability(index)
        device = f"{torch.cuda.get_device_name(index)} (sm_{major}{minor})"
    layers = backend.layers
    return (
        f"codec {__version__} on SGLang {sglang_version}, {device}: "
        f"tree reader {expected_reader(model_runner)}; prefill backend {prefill}; "
        f"page size {model_runner.page_size}; {_steps(model_runner)}layers {backend.limits}; "
        f"{len(layers.delegated)} of {layers.num_layers} layers delegated to {prefill}; "
        f"{decode_graphs(model_runner)}"
    )


def _steps(model_runner: ModelRunner) -> str:
    if (rows := query_rows(model_runner)) == 1:
        return ""
    algorithm = setting(model_runner, "speculative_algorithm")
    return f"verifies chains of {rows} tokens ({algorithm}); "


def expected_reader(model_runner: ModelRunner) -> str:
    """Name of the tree reader that SGLang's default tree will get; the tree is built later."""
    from sglang_codec.patches.tree_readers import ParentWalkReader, PathInfoReader

    if setting(model_runner, "disable_radix_cache"):
        return "none (radix cache disabled)"
    try:
        from sglang.srt.mem_cache.unified_cache.unified_tree_core_interface import (
            UnifiedTreeCoreInterface,
        )
    except ImportError:
        return ParentWalkReader.name
    has_path_info = hasattr(UnifiedTreeCoreInterface, "collect_path_info")
    return PathInfoReader.name if has_path_info else ParentWalkReader.name


def _look_at_a_step(model_runner: ModelRunner, backend: CodecDecodeBackend) -> None:
    """Before graphs are captured, decode once to see what the layers pass.

    Then SGLang has put the backend where it belongs, beside the one that prefills.
    """
    from sglang_codec.mixed_batches import serve_mixed_batches
    from sglang_codec.patches.eager_start import EAGER_START
    from sglang_codec.patches.registry import spare_unread_masks
    from sglang_codec.step_probe import see_a_step, settle

    def look(eager_runner: Any) -> None:
        serve_mixed_batches(model_runner.attn_backend, backend)
        if (seen := see_a_step(eager_runner, backend)) is not None:
            settle(seen, backend, model_runner)
            if len(seen.reached - backend.layers.delegated.keys()) == backend.layers.num_layers:
                spare_unread_masks(model_runner)

    EAGER_START.use(model_runner, look)


def _check_settings(model_runner: ModelRunner, config: CodecConfig) -> None:
    unknown = unknown_settings(model_runner.server_args)
    if not unknown:
        return
    flags = ", ".join("--" + name.replace("_", "-") for name in unknown)
    if not config.allow_untested_sglang:
        raise UnsupportedConfiguration(
            f"codec: {flags} is in no SGLang that codec was tried with; drop it, or set "
            "SGLANG_CODEC_ALLOW_UNTESTED_SGLANG=1 to try at your own risk"
        )
    logger.warning("codec: it does not know %s, and goes on as if it did not matter", flags)


def _report(backend: CodecDecodeBackend) -> None:
    """Let SGLang's metrics, decode log line and server info show the backend's numbers."""
    from sglang_codec.metrics import ServingReport
    from sglang_codec.patches.fallbacks import FALLBACKS
    from sglang_codec.patches.registry import apply_report_patches
    from sglang_codec.patches.reports import REPORTS

    apply_report_patches()
    REPORTS.use(ServingReport(backend.planner, FALLBACKS.counts))


def _check_stock_backend(name: str) -> None:
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

    if name == BACKEND_NAME or name not in ATTENTION_BACKENDS:
        known = ", ".join(sorted(set(ATTENTION_BACKENDS) - {BACKEND_NAME}))
        raise UnsupportedConfiguration(
            f"codec: prefill backend {name!r} is not one of SGLang's ({known}); set "
            f"SGLANG_CODEC_PREFILL_BACKEND or --prefill-attention-backend"
        )


def _build_stock_backend(model_runner: ModelRunner, name: str) -> AttentionBackend:
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

    backend: Any = ATTENTION_BACKENDS[name](model_runner)
    # from 0.5.19 on SGLang binds a translator to the backends that it sees, not to our children
    if getattr(backend, "kv_index_translator", model_runner) is None:
        backend.kv_index_translator = model_runner.kv_index_translator
    return backend
