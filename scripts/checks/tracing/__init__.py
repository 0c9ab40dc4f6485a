"""Parts of the overlap trace; `scripts/checks/trace_overlap.py` is the command."""
