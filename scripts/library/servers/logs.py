"""Keeps SGLang's start-up chatter out of a workload's output, but not the codec banner."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

LOGGING_VARIABLE = "SGLANG_LOGGING_CONFIG_PATH"


def quiet_engines(directory: Path, *, gpu: bool) -> None:
    """Engines started from here on log only what matters; the user's own settings win.

    On a machine without a GPU, SGLang's warnings are about the missing GPU.
    """
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "[%(asctime)s] %(message)s", "datefmt": "%H:%M:%S"}},
        "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"level": "WARNING" if gpu else "ERROR", "handlers": ["console"]},
        "loggers": {"sglang_codec": {"level": "INFO"}},
    }
    path = directory / "logging.json"
    path.write_text(json.dumps(config))
    os.environ.setdefault(LOGGING_VARIABLE, str(path))
    os.environ.setdefault("TQDM_DISABLE", "1")
    if not gpu:
        os.environ.setdefault("PYTHONWARNINGS", "ignore")
        warnings.simplefilter("ignore")
