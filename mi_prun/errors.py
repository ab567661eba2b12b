"""What the user can mend."""


class UserError(Exception):
    """A fault of the input, said in one line: the value, the rule and the way out.

    Every command prints it without a traceback and exits with status 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))  # a name out of a file may hold line breaks
