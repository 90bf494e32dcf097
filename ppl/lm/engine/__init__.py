"""The in-process engine: batched, ragged, prefix-sharing passes through a decoder."""
