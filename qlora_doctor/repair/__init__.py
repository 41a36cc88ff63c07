"""Repair: fixes simulated, planned, applied, journalled and taken back."""
