"""Studies behind the defaults and the figures in docs. Not part of the wheel."""
