"""What a model loses without some of its blocks, measured."""
