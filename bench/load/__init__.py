"""Load on an engine: prompts, traces, workloads and the worker that sends them."""
