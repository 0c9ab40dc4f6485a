"""What the codec backend says it shared: the JSON file that it writes and rewrites."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

DUMP_VARIABLE = "SGLANG_CODEC_DUMP"


@dataclass(frozen=True, slots=True)
class Sharing:
    """Totals of a dump, with the dump itself (forest and plan of its last batch)."""

    steps: int
    plans: int
    kv_tokens_read: int
    kv_tokens_stock: int
    fallbacks: dict[str, int] = field(default_factory=dict)
    dump: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def saved(self) -> float:
        """The part of the stock backend's KV reads that was not needed, 0 to 1."""
        return 1 - self.kv_tokens_read / self.kv_tokens_stock if self.kv_tokens_stock else 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"saved": self.saved}


def read_sharing(path: Path | None, attempts: int = 5) -> Sharing | None:
    """The file's content, None if there is none or if it never was complete JSON."""
    if path is None:
        return None
    for attempt in range(attempts):
        if attempt:
            time.sleep(0.1)
        try:
            dump = json.loads(path.read_text())
            names = ("steps", "plans", "kv_tokens_read", "kv_tokens_stock", "fallbacks")
            return Sharing(**{name: dump["totals"][name] for name in names}, dump=dump)
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
            # caught in the middle of a rewrite
            continue
    return None


def request_dump(path: Path) -> None:
    """Make engines started from here on write their dump to `path`."""
    path.unlink(missing_ok=True)
    os.environ[DUMP_VARIABLE] = str(path)


def explain(sharing: Sharing, picture: Path | None = None) -> str:
    """The forest and its plan as text and, if wanted, drawn to a PNG file.

    A measurement that took minutes must not be lost because it cannot be drawn: then the text
    says why.
    """
    if not {"forest", "plan"} <= sharing.dump.keys():
        return "no forest to show: no decode batch was planned"
    try:
        from sglang_codec.explain import draw, explain_text

        text = explain_text(sharing.dump)
        if picture is not None:
            picture.parent.mkdir(parents=True, exist_ok=True)
            draw(sharing.dump, picture)
            text += f"\nforest and plan: {picture}"
    except (ImportError, LookupError, TypeError, ValueError) as error:
        return f"no forest to show: {type(error).__name__}: {error}"
    return text
