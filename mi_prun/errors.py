"""The error of everything that the user can mend."""

LONGEST_SHOWN = 100  # characters of a value in a message


class UserError(Exception):
    """A fault of the input, in one line: the value, the rule and the way out.

    Every command prints it without a traceback and exits with `status`.
    """

    status = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))  # a name out of a file may hold line breaks


def first_line(error: BaseException) -> str:
    """Return the first non-empty line of a third-party error, for use in a UserError.

    A line that only announces the next one (`Validation error for field 'x':`) comes with it. The text of a KeyError is
    the key alone, so it comes with its name.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"{type(error).__name__}: {said}" if isinstance(error, KeyError) else said
