"""Data files: bytes -> text -> records -> rows of chat messages, with everything that is wrong named by file and row."""
