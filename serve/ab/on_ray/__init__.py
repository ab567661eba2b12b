"""The arms on Ray Serve: replicas that run engines, and the proxy before them."""
