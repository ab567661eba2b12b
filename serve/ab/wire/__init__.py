"""HTTP as it is on the wire, towards clients and towards arms."""
