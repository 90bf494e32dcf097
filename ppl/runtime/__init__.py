"""How programs run: particles, requests in batches, the tree."""
