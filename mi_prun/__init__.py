"""MI-PRUN's offline stage: a dense model becomes an analysis, a plan and a layer-dropped checkpoint.

Nothing here imports vLLM; torch and transformers are imported by the modules that need them, not by this one.
"""

from mi_prun.version import __version__

__all__ = ["__version__"]
