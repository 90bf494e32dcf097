"""Models behind a server."""

from ppl.lm.server.model import ServerModel

__all__ = ["ServerModel"]
