"""Runs SGLang's own test kits against codec; `scripts/checks/run_sglang_kits.py` is the command."""
