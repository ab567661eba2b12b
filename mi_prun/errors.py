"""The error of everything that the user can mend."""


class UserError(Exception):
    """A fault of the input, in one line: the value, the rule and the way out.

    Every command prints it without a traceback and exits with status 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))  # a name out of a file may hold line breaks


def first_line(error: BaseException) -> str:
    """Return the first non-empty line of a third-party error, for use in a UserError."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
