"""Gathering: what is, read from an interpreter, the disk, a script or the Hub. Nothing here judges."""
