"""Command line: ``python -m sglang_codec explain FILE``."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from sglang_codec import __version__

_EXPLAIN = """\
Show the prefix forest of a batch and how CoDec plans to read it.

FILE is JSON, one of
  {"forest": ..., "plan": ...}                     what a server wrote to $SGLANG_CODEC_DUMP
  {"paths": [[["system", 4096], ["q-1", 32]],      a row per request: segment ids and KV tokens;
             [["system", 4096], ["q-2", 50]]]}     rows share the segments that they name alike
  {"tree": "1,4,16_2048,512,256"}                  nodes per level, then tokens per node of a level;
                                                   every node of the last level is a request
The last two are planned for an H100-like GPU with a roofline cost model; the options below change
the attention shape.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sglang-codec", description="CoDec prefix-shared decode attention for SGLang."
    )
    parser.add_argument("--version", action="version", version=f"sglang_codec {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True)
    explain = commands.add_parser(
        "explain",
        help="show a prefix forest and its plan as text and as a picture",
        description=_EXPLAIN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    explain.add_argument("file", metavar="FILE", type=Path, help="JSON file, see above")
    explain.add_argument(
        "--png", metavar="OUT", type=Path, help="also draw a picture (.png, .svg or .pdf)"
    )
    explain.add_argument(
        "--width", type=int, help="columns of the text (default: those of the terminal)"
    )
    shape = explain.add_argument_group('attention shape, for "paths" and "tree"')
    shape.add_argument("--kv-heads", type=int, default=8, help="KV heads (default: 8)")
    shape.add_argument("--group", type=int, default=4, help="query heads per KV head (default: 4)")
    shape.add_argument("--head-dim", type=int, default=128, help="(default: 128)")
    shape.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        default="bfloat16",
        help="of K and V (default: bfloat16)",
    )
    shape.add_argument(
        "--slots", type=int, help="program slots per KV head (default: those of an H100)"
    )
    return parser


def _explain(options: argparse.Namespace) -> None:
    # lazy: --help and --version need no NumPy
    from sglang_codec.explain import draw, explain_text
    from sglang_codec.explain_input import Machine, read_dump
    from sglang_codec.explain_view import InputError

    width = options.width
    if width is None:
        width = max(80, shutil.get_terminal_size((100, 24)).columns)
    if not 60 <= width <= 1000:
        raise InputError(f"--width is {width}; give a number from 60 to 1000")
    machine = Machine(
        num_kv_heads=options.kv_heads,
        group=options.group,
        head_dim=options.head_dim,
        dtype=options.dtype,
        slots=options.slots,
    )
    dump = read_dump(options.file, machine)
    print(explain_text(dump, width=width))
    if options.png is not None:
        draw(dump, options.png)
        print(f"\npicture: {options.png}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 2 means that the input was refused, and standard error says why."""
    options = _parser().parse_args(arguments)
    try:
        _explain(options)
    except (ValueError, RuntimeError) as error:
        print(f"sglang-codec {options.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # `| head` has seen enough
        sys.stderr.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
