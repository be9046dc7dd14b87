"""What a configuration needs of the devices it is to run on, before there are any: memory, traffic, time."""
