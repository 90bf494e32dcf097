"""What a server can do, and whether it agrees with itself: asked once, when a model is made."""

from __future__ import annotations

import math

from ppl.errors import ServerError
from ppl.lm.base import Tokens
from ppl.lm.sampling import Warp
from ppl.lm.server.client import PLAIN, Abilities, Client
from ppl.lm.server.endpoint import RefusedError

# Tokens of the texts that are scored twice: three blocks of vLLM's cache and a token.
_SCORED = 49


async def abilities(client: Client, tolerance: float, longest: int) -> Abilities:
    """Probes a server with a few short requests.

    Args:
        client: asks it.
        tolerance: most difference between two numbers that should be the same, in nats.
        longest: most tokens of a text.

    Raises:
        ServerError: it lacks something without which nothing is exact, or contradicts itself.
    """
    here, codec = f"start-up probe of {client.name}", client.codec
    plain = [token for token in range(codec.size) if token not in codec.end_tokens]
    first, end = plain[0], min(codec.end_tokens)
    drawn = await client.complete(client.body((first,), PLAIN, 3, 1), here)
    if not drawn.tokens:
        raise ServerError(
            f"{here}: no token ids come back; use vLLM 0.10.2 or later (return_token_ids)"
        )
    if len(drawn.log_probs) != len(drawn.tokens):
        raise ServerError(
            f"{here}: no log-probabilities come back; start vLLM with --max-logprobs 1 or more"
        )
    scored = await _scored(client, (first, *drawn.tokens), here)
    scores = scored is not None
    pairs = zip(drawn.tokens, drawn.log_probs, (scored or ())[1:], strict=False)
    for token, said, now in pairs:
        if not _agree(said, now, tolerance):
            raise ServerError(
                f"{here}: it drew token {token} with log-probability {said:.4f} and scores it as "
                f"{now:.4f}; its numbers cannot be weights (tolerance={tolerance})"
            )
    if scores:
        await _refuse_stale(client, plain, min(_SCORED, longest), tolerance, here)
    processed = False
    likeliest = await client.complete(client.body((first,), Warp(top_k=1), 1, 1), here)
    if likeliest.tokens and likeliest.log_probs and scores:
        raw = await client.score((first, *likeliest.tokens), here)
        processed = likeliest.log_probs[0] > -1e-6 and raw[1] < -1e-3
    biased = client.body((first,), PLAIN, 1, 1) | {"logit_bias": {str(end): 100}}
    ended = await client.complete(biased, here)
    gives_end = True if ended.tokens == (end,) else False if not ended.tokens else None
    return Abilities(scores, processed, gives_end)


async def _refuse_stale(
    client: Client, plain: list[int], length: int, tolerance: float, here: str
) -> None:
    """Scores texts that begin alike, in two orders.

    With prefix caching, vLLM's `prompt_logprobs` may hold what an earlier request left at cached
    positions (vLLM issue 42019): the same text then has other numbers the second time.
    """
    half = length // 2
    a, b = (tuple(plain[(i * step) % len(plain)] for i in range(length)) for step in (1, 3))
    texts = [a, b, a[:half] + b[half:]]
    once = [await client.score(text, here) for text in texts]
    again = [await client.score(text, here) for text in reversed(texts)][::-1]
    for before, after in zip(once, again, strict=True):
        for at, (said, now) in enumerate(zip(before[1:], after[1:], strict=True), 1):
            if not _agree(said, now, tolerance):
                raise ServerError(
                    f"{here}: it scored the same text twice and gave token {at} the "
                    f"log-probabilities {said:.4f} and {now:.4f} (prompt_logprobs); if it is vLLM, "
                    "start it with --no-enable-prefix-caching (vLLM issue 42019)"
                )


async def _scored(client: Client, tokens: Tokens, here: str) -> tuple[float, ...] | None:
    """Log-probabilities of all tokens, None if the server does not score."""
    try:
        answer = await client.complete(
            client.body(tokens, PLAIN, 1, 1) | {"prompt_logprobs": 1}, here
        )
    except RefusedError:  # it knows no prompt_logprobs, or does not allow them
        return None
    return answer.prompt_log_probs or None


def _agree(said: float, now: float, tolerance: float) -> bool:
    return said == now or (math.isfinite(said - now) and abs(said - now) <= tolerance)
