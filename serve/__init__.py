"""Serving: one pruned or dense model behind vLLM's OpenAI-compatible server."""
