"""Verifiers that write."""
