"""Ask models zero-shot tasks through served endpoints."""
