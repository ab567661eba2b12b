"""Files for a cluster, with the arms and weights of a configuration."""
