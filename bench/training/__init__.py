"""Small language models, trained from any text."""
