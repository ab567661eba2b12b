"""Models in other file formats, made into a model folder."""
