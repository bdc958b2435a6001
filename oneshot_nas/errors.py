"""The two ways a command may fail, so that users read one sentence and never a traceback."""


INSTALL_EXTRA = "pip install -c constraints.txt -e '.[{}]' in the checkout"  # .format(extra): what adds an optional package


class UserError(ValueError):
    """Wrong use or bad input: the message says what was given, what is allowed and what to do. Exit code 2."""


class WorkError(RuntimeError):
    """A failure while working (disk full, a process that died): the message says what is kept. Exit code 1."""
