"""The vLLM extension. `plugin.register` is what vLLM calls in each of its processes."""
