"""Server arguments near attention, KV cache and graphs that codec was judged against.

A newer SGLang may have others. One that is set, and whose name says that it touches these parts,
is named at start-up instead of being served in the hope that it does not matter.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from sglang_codec.attention_layers import is_off

# what names an argument that may change what a decode step reads, where, or how it is recorded
RELATED = re.compile(
    r"attn|attention|kv_|_kv|graph|compile|kernel|radix|page|cp_|sparse|swa|decode|overlap"
    r"|unified|determin"
)


def unknown_settings(server_args: Any) -> list[str]:
    """Arguments that are set, related, and in no SGLang that codec was tried with."""
    try:
        parameters = inspect.signature(type(server_args)).parameters
    except ValueError:  # not SGLang's: a bare namespace, as unit tests of backends have
        return []
    return [
        name
        for name, parameter in parameters.items()
        if RELATED.search(name)
        and name not in KNOWN
        and not is_off(value := getattr(server_args, name, None))
        and value != parameter.default
    ]


# 0.5.17 to 0.5.23
_NAMES = """
    _radix_eviction_policy_explicitly_set _swa_full_tokens_ratio_explicitly_set attention_backend
    attn_cp_size attn_dp_size c128_page_size cp_strategy cuda_graph_backend_decode
    cuda_graph_backend_prefill cuda_graph_bs_decode cuda_graph_bs_prefill cuda_graph_config
    cuda_graph_max_bs_decode cuda_graph_max_bs_prefill cuda_graph_max_seq_len_prefill
    cuda_graph_prefill_max_context cuda_graph_tc_compiler dcp_comm_backend dcp_replicate_q_proj
    dcp_size debug_cuda_graph decode_attention_backend decode_log_interval
    disable_aiter_allreduce_fusion_in_decode disable_attn_tp_gather disable_cuda_graph
    disable_cuda_graph_padding disable_decode_cuda_graph disable_hybrid_swa_memory
    disable_overlap_schedule disable_prefill_cuda_graph disable_radix_cache
    disable_tokenizer_batch_decode disaggregation_decode_allocation_policy
    disaggregation_decode_enable_offload_kvcache disaggregation_decode_enable_radix_cache
    disaggregation_decode_extra_slots disaggregation_decode_host_receive_threshold
    disaggregation_decode_polling_interval disaggregation_decode_retraction_backup
    disaggregation_enable_kv_checksum dsa_decode_backend dsa_paged_mqa_logits_backend
    dsa_prefill_cp_mode dsv4_attn_backend enable_amd_monokernel enable_attn_tp_input_scattered
    enable_cp_decode_attn_tp enable_cp_tp_group_sharing enable_cudagraph_gc
    enable_decoder_swa_bounded_replay enable_dense_mlp_attn_tp enable_deterministic_inference
    enable_dp_attention enable_dp_attention_local_control_broadcast
    enable_encoder_swa_bounded_replay enable_hisparse enable_kv_cache_sharding enable_lean_attention
    enable_lora_overlap_loading enable_nvidia_megakernel enable_page_major_kv_layout
    enable_paged_experts enable_profile_cuda_graph enable_session_radix_cache
    enable_shared_experts_attn_tp enable_single_batch_overlap enable_torch_compile
    enable_torch_compile_debug_mode enable_two_batch_overlap enable_unified_cache_external_linker
    enable_unified_memory flexkv_config_file hisparse_config kv_cache_dtype kv_canary
    kv_canary_real_data kv_canary_sweep_interval kv_events_config linear_attn_backend
    linear_attn_decode_backend linear_attn_prefill_backend linear_attn_verify_backend
    mamba_radix_cache_strategy mm_attention_backend num_continuous_decode_steps
    num_reserved_decode_tokens page_size paged_experts_num_resident prefill_attention_backend
    prefill_cp_mode prefill_decode_interval prefill_decode_interval_min_bs
    prefill_kv_cache_dequant_dtype prefill_only_disable_kv_cache radix_cache_backend
    radix_eviction_policy radix_eviction_policy_config speculative_attention_mode
    speculative_draft_attention_backend speculative_draft_kv_cache_dtype
    speculative_dspark_align_verify_tokens_to_graph_tier swa_full_tokens_ratio swa_prefix_tails
    torch_compile_max_bs triton_attention_num_kv_splits triton_attention_reduce_in_fp32
    triton_attention_split_tile_size unified_cache_external_linker_backend
    unified_cache_external_linker_config uses_mamba_radix_cache
"""
KNOWN = frozenset(_NAMES.split())
