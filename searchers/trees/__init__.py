"""Tree searches that go back to earlier nodes."""
