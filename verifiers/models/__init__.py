"""Verifiers that are models: reward models and their heads."""
