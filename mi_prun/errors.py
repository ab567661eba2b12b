"""What the user can mend."""


class UserError(Exception):
    """A fault of the input, said in one line: the value, the rule and the way out.

    Every command prints it without a traceback and exits with status 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))  # a name out of a file may hold line breaks


def first_line(error: Exception) -> str:
    """Of what another library says, for one of ours; an ImportError of transformers begins with an empty line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
