"""What the user can mend."""


class UserError(Exception):
    """A fault of the input, said in one line: the value, the rule and the way out.

    Every command prints it without a traceback and exits with status 2.
    """
