"""Studies behind the defaults and the figures in docs. They are not part of the wheel."""
