"""The model and the flags that every server of a run has in common."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from library.options import positive_number
from library.servers.backends import as_flags, has_gpu, machine_arguments, prepare_environment
from library.servers.encoders import has_tokenizer
from library.servers.models import SHAPES, write_model


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start servers with.

    Args:
        name: of the model, as results have it.
        model: directory or Hugging Face name.
        flags: besides the model and the backend; the user's come last and win.
        text: whether prompts may be text.
    """

    name: str
    model: str
    flags: tuple[str, ...]
    text: bool

    @property
    def all_flags(self) -> list[str]:
        return [f"--model-path={self.model}", *self.flags]


def add_model_options(group: argparse._MutuallyExclusiveGroup) -> None:
    """--model and --shape."""
    group.add_argument("--model", help="model directory or Hugging Face name")
    group.add_argument(
        "--shape",
        choices=tuple(SHAPES),
        help="dummy weights in the shape of a model, and a tokenizer: nothing is downloaded",
    )


def add_draft_options(add: Callable[..., object]) -> None:
    """--draft and --accept-length, for servers whose flags have `--speculative-algorithm`."""
    about = "dummy weights that draft, for --speculative-algorithm=STANDALONE after --"
    add("--draft", choices=tuple(SHAPES), help=about)
    about = "tokens that a verify step yields in the mean, whatever is drafted: SGLang simulates it"
    add("--accept-length", type=positive_number, metavar="TOKENS", help=about)


def check_model(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse a --model that is meant as a directory and is none."""
    if args.model and args.model.startswith(("/", ".")) and not Path(args.model).is_dir():
        parser.error(f"--model: {args.model} is no directory")


def make_launch(args: argparse.Namespace, folder: Path, flags: Sequence[str]) -> Launch:
    """Settle the model, writing a dummy one if that is wanted, and this process's environment."""
    gpu = has_gpu()
    model = args.model or str(write_model(args.shape, folder / args.shape))
    prepare_environment(model, gpu=gpu)
    text = has_tokenizer(model)
    chosen = as_flags(machine_arguments(gpu=gpu))
    chosen += [] if gpu else ["--skip-server-warmup"]
    chosen += ["--load-format=dummy"] if args.shape else []
    chosen += [] if text else ["--skip-tokenizer-init"]
    if getattr(args, "draft", None):
        draft = write_model(args.draft, folder / args.draft)
        chosen += [f"--speculative-draft-model-path={draft}"]
    if getattr(args, "accept_length", None):
        os.environ["SGLANG_SIMULATE_ACC_LEN"] = f"{args.accept_length:g}"
        os.environ["SGLANG_SIMULATE_ACC_TOKEN_MODE"] = "real-draft-token"
    name = f"{args.shape} shape, dummy weights" if args.shape else Path(model).name
    return Launch(name, model, (*chosen, *flags), text)
