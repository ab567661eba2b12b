"""The blocks that go: the plan file, the amount that is asked for, the map that is drawn."""
