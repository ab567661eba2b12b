"""Names that vLLM's processes and ours agree on."""

LOAD_FORMAT = "mi_prun"  # vLLM's --load-format
SERVER_PID = "MI_PRUN_SERVER_PID"  # set by `mi-prun-serve` in its own environment, which its children inherit
