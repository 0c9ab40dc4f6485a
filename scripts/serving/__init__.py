"""Parts of the serving benchmark; `scripts/bench_serving.py` is the command."""
