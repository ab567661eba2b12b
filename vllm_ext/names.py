"""Names that vLLM's processes and ours agree on."""

LOAD_FORMAT = "mi_prun"  # vLLM's --load-format
SERVER_PID = "MI_PRUN_SERVER_PID"  # set by `mi-prun-serve` in its own environment, which its children inherit

# Said by the server before it starts an engine, or by the engine that another server started.
NO_ADAPTERS = (
    "--draft does not go with --enable-lora: the draft runs on the dense model's own layers, and vLLM's adapters in "
    "them cannot follow its tokens; serve the dense model without a draft, or a pruned one"
)
