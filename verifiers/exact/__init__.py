"""Verifiers that compute: answers, grammars, tests, proofs."""
