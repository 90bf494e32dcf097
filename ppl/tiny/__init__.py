"""The embedded models: `ppl.load("tiny")` and `PRM.load("tiny")`; see README.md here."""
