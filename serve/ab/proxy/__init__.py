"""A request's way from a client to an arm and back."""
