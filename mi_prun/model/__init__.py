"""A model: its folder, its identity, its weights on disk and in memory."""
