"""Choose a radix tree core that can be read from Python."""

from __future__ import annotations

import logging
import os

VARIABLE = "SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND"

logger = logging.getLogger(__name__)


def prefer_readable_tree_core() -> bool:
    """Ask for the Python tree core where the default one is unreadable; says if it did.

    Why: SGLang 0.5.21 defaults to the Rust core and gives Python no way to read its nodes.
    Upstream: the variable is read when the tree is built, after the attention backend, in the same
    process. Before 0.5.21 the default is the Python core; from 0.5.22 on both cores have
    `collect_path_info`.
    Remove when: 0.5.21 is no longer supported.
    """
    if os.environ.get(VARIABLE):
        return False
    try:
        from sglang.srt.environ import envs
        from sglang.srt.mem_cache.unified_cache.unified_tree_core_interface import (
            UnifiedTreeCoreInterface,
        )
    except ImportError:
        # a release without the unified tree: its nodes are Python objects
        return False
    default = getattr(envs, VARIABLE, None)
    if hasattr(UnifiedTreeCoreInterface, "collect_path_info") or default is None:
        return False
    if default.get() != "rust":
        return False
    os.environ[VARIABLE] = "python"
    logger.info("codec: %s=python, because this SGLang's Rust tree core cannot be read", VARIABLE)
    return True
