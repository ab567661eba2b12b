"""A/B serving: two or more arms behind one OpenAI-compatible endpoint."""
