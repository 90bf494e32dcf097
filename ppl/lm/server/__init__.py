"""Models behind a server."""

from ppl.lm.server.model import ServerModel
from ppl.lm.server.pool import ServerPool

__all__ = ["ServerModel", "ServerPool"]
