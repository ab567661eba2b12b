"""Zero-shot tasks through served endpoints."""
