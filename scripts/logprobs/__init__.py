"""Parts of the comparison of log-probabilities; `scripts/compare_logprobs.py` is the command."""
