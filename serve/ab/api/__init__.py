"""The application: its routes, its page, its metrics, its process."""
