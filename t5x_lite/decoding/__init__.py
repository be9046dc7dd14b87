"""Decoding on the devices: one compiled call an answer."""
