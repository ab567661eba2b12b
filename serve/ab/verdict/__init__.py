"""What the arms did, what that says, and how sure it is."""
