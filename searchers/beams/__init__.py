"""Searches that keep the best."""
