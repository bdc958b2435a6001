"""Search: proposals (`searchers`, `family`, `coarse`), their history in an Optuna study (`history`), the loop, and its result."""
