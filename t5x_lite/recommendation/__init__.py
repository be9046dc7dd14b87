"""Recommendation of items of a catalogue: data, splits, and how items are named to the model."""
