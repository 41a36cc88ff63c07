"""Data: formats -> rows of chat messages -> audit -> token ids with answer-only labels -> batches."""
