"""Search: proposals (`searchers`), their history in an Optuna study (`history`), the loop, and its result."""
