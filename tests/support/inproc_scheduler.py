"""Drive SGLang's real scheduler inside the test process, with tree, pools and backend in reach.

The scheduler's own event loop runs, normal or overlapped; only the receiving of requests is
replaced. One scheduler per process: SGLang's configuration and process groups are global.
"""

from __future__ import annotations

import json
import logging
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

OnForward = Callable[["InprocScheduler", Any], None]

CPU_SERVER_ARGS: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "load_format": "dummy",
    "skip_tokenizer_init": True,
    # otherwise the KV pool is sized from the machine's memory
    "max_total_tokens": 8192,
    "max_running_requests": 16,
    "context_length": 2048,
    "disable_cuda_graph": True,
    "disable_overlap_schedule": True,
    "grammar_backend": "none",
    # each split of SGLang's Triton decode is interpreted for itself
    "triton_attention_num_kv_splits": 1,
    "log_level": "warning",
    "random_seed": 0,
}


def write_tiny_llama(folder: Path, *, head_dim: int = 32, heads: int = 4, kv_heads: int = 2) -> str:
    """A model folder with a configuration only, for `load_format="dummy"`."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": heads * head_dim,
        "head_dim": head_dim,
        "intermediate_size": 2 * heads * head_dim,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": 2,
        "vocab_size": 512,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "float32",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


class InprocScheduler:
    """The real scheduler of one rank; `submit` requests, then `run` or `step`."""

    def __init__(self, model_path: str, attention_backend: str = "codec", **server_args: Any):
        _load_plugins()
        from sglang.srt.server_args import ServerArgs

        arguments = CPU_SERVER_ARGS | server_args
        _configure_logging(arguments["log_level"])
        self.server_args = ServerArgs(
            model_path=model_path, attention_backend=attention_backend, **arguments
        )
        self.scheduler = _make_scheduler(self.server_args)
        self.requests: dict[str, Any] = {}
        self._iterations_left = 0
        self._replace_receiver()

    @property
    def model_runner(self) -> Any:
        return self.scheduler.tp_worker.model_runner

    @property
    def backend(self) -> Any:
        return self.model_runner.attn_backend

    @property
    def decode_backend(self) -> Any:
        """The decode child of a hybrid, else the backend itself; beside linear layers too."""
        attention = getattr(self.backend, "full_attn_backend", self.backend)
        return getattr(attention, "decode_backend", attention)

    @property
    def tree_cache(self) -> Any:
        return self.scheduler.tree_cache

    @property
    def req_to_token(self) -> Any:
        return self.scheduler.req_to_token_pool.req_to_token

    def submit(
        self,
        input_ids: Sequence[int],
        max_new_tokens: int = 8,
        *,
        rid: str | None = None,
        extra_key: str | None = None,
        session: str | None = None,
        **sampling: Any,
    ) -> str:
        """Queue a greedy request, or the next turn of an open session; its id."""
        from sglang.srt.managers.io_struct import SessionParams, TokenizedGenerateReqInput
        from sglang.srt.sampling.sampling_params import SamplingParams

        rid = rid or f"r{len(self.requests)}"
        sampling = {"temperature": 0.0, "ignore_eos": True} | sampling
        params = SamplingParams(max_new_tokens=max_new_tokens, **sampling)
        params.normalize(None)
        self.scheduler.handle_generate_request(
            TokenizedGenerateReqInput(
                rid=rid,
                input_text=None,
                input_ids=array("q", input_ids),
                input_embeds=None,
                mm_inputs=None,
                token_type_ids=None,
                sampling_params=params,
                return_logprob=False,
                logprob_start_len=-1,
                top_logprobs_num=0,
                token_ids_logprob=None,
                stream=False,
                extra_key=extra_key,
                session_params=SessionParams(id=session) if session else None,
            )
        )
        self.requests[rid] = next(q for q in self.scheduler.waiting_queue if q.rid == rid)
        return rid

    def open_session(self, session: str) -> None:
        """Open a streaming session; the server needs `enable_streaming_session`."""
        from sglang.srt.managers.io_struct import OpenSessionReqInput

        opened = self.scheduler.open_session(
            OpenSessionReqInput(capacity_of_str_len=4096, session_id=session, streaming=True)
        )
        assert opened.success

    def close_session(self, session: str) -> None:
        from sglang.srt.managers.io_struct import CloseSessionReqInput

        self.scheduler.close_session(CloseSessionReqInput(session_id=session))

    def step(self) -> Any:
        """One iteration of the normal loop; the batch that ran, None when idle."""
        if self.scheduler.enable_overlap:
            raise ValueError("step() cannot stop the overlapped loop; use run()")
        self._loop(1)
        return self.scheduler.last_batch

    def run(
        self, on_forward: OnForward | None = None, *, max_steps: int = 10000
    ) -> dict[str, list[int]]:
        """Serve everything queued; output ids by request id.

        `on_forward(self, forward_batch)` runs before every forward pass, on the scheduler's thread
        inside `run_batch`, where a backend may read the tree.
        """
        runner, original = self.model_runner, self.model_runner.forward

        def forward(forward_batch: Any, *args: Any, **kwargs: Any) -> Any:
            if on_forward:
                on_forward(self, forward_batch)
            return original(forward_batch, *args, **kwargs)

        runner.forward = forward
        try:
            self._loop(max_steps)
        finally:
            del runner.forward
        return {rid: list(req.output_ids) for rid, req in self.requests.items()}

    def _loop(self, iterations: int) -> None:
        scheduler = self.scheduler
        self._iterations_left, scheduler.gracefully_exit = iterations, False
        scheduler.run_event_loop()

    def _replace_receiver(self) -> None:
        def receive(*args: Any, **kwargs: Any) -> list[Any]:
            self._iterations_left -= 1
            finished = all(req.finished() for req in self.requests.values())
            # the loop looks at the flag before the next iteration: this one still runs
            idle = finished and self.scheduler.last_batch is None
            self.scheduler.gracefully_exit = idle or self._iterations_left <= 0
            return []

        if hasattr(self.scheduler, "ingest_requests"):
            self.scheduler.ingest_requests = receive
        else:
            # a class with slots: it can be replaced but not changed
            receiver = self.scheduler.request_receiver
            self.scheduler.request_receiver = _Receiver(receiver, receive)


class _Receiver:
    """SGLang's request receiver with another `recv_requests`."""

    def __init__(self, receiver: Any, receive: Callable[[], list[Any]]) -> None:
        self._receiver = receiver
        self.recv_requests = receive

    def __getattr__(self, name: str) -> Any:
        return getattr(self._receiver, name)


def _load_plugins() -> None:
    from sglang.srt.plugins import load_plugins
    from sglang.srt.plugins.hook_registry import HookRegistry

    from sglang_codec.plugin import load_plugin

    load_plugins()
    # in a checkout that is not installed the entry point cannot be found
    load_plugin()
    HookRegistry.apply_hooks()


def _configure_logging(level: str) -> None:
    # as configure_scheduler_process does; it shows the start-up banner
    logging.basicConfig(level=level.upper(), format="%(message)s")


def _make_scheduler(server_args: Any) -> Any:
    from sglang.srt import runtime_context
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.server_args import PortArgs

    ports = PortArgs.init_new(server_args)
    if hasattr(runtime_context, "SpawnRanks"):  # 0.5.21 and newer
        rank = runtime_context.spawn_world_rank(server_args, tp_rank=0, pp_rank=0)
        ranks = runtime_context.SpawnRanks(world_rank=rank, dp_rank=None, gpu_id=0)
        runtime_context.publish(server_args, role="scheduler", ranks=ranks)
        return Scheduler(server_args, ports)
    runtime_context.publish(server_args, role="scheduler")
    return Scheduler(
        server_args,
        ports,
        gpu_id=0,
        tp_rank=0,
        moe_ep_rank=0,
        pp_rank=0,
        attn_cp_rank=0,
        moe_dp_rank=0,
        dp_rank=None,
    )
