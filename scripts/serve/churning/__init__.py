"""Parts of the churn test; `scripts/serve/churn.py` is the command."""
