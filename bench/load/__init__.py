"""Put load on an engine: workloads, their prompts, and the process that sends them."""
