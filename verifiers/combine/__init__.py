"""Verifiers made of verifiers: calibration, ensembles, noise."""
