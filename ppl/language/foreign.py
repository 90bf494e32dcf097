"""Keyword arguments of other libraries, and what they are called here.

Whoever comes from `transformers`, vLLM or an OpenAI client writes `stop=` or `max_new_tokens=` at
first; the error says our word for it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

OF_CALLS: Mapping[str, str] = {
    "stop": "until=",
    "stop_strings": "until=",
    "stop_sequences": "until=",
    "max_new_tokens": "max_tokens=",
    "max_length": "max_tokens= (new tokens only)",
    "max_completion_tokens": "max_tokens=",
    "do_sample": "temperature= (0 for the most likely token)",
    "num_beams": "a searcher, as in BeamSearch(beam_width).run(program)",
    "num_return_sequences": "a searcher, as in BestOfN(n).run(program)",
    "n": "a searcher, as in BestOfN(n).run(program)",
    "best_of": "a searcher, as in BestOfN(n).run(program)",
    "seed": "searcher.run(program, seed=...): draws are keyed by the search",
    "logprobs": "lm(text, ...).log_prob(continuation)",
    "typical_p": "top_p= or min_p=",
    "epsilon_cutoff": "min_p=",
    "bad_words_ids": "allowed=",
    "logit_bias": "allowed=, for what is ruled out",
    "logits_processor": "allowed=, for what is ruled out",
    "prefix_allowed_tokens_fn": "allowed=",
    "guided_regex": "allowed=ppl.verifiers.Regex(...)",
    "prompt": "lm(lm.prompt(string))",
    "messages": "lm(lm.chat(messages))",
}
"""Of `lm(text, ...)`."""

OF_NEXT: Mapping[str, str] = {
    **OF_CALLS,
    "until": "lm(text, until=...), as one token is all that is drawn",
    "max_tokens": "lm(text, max_tokens=...), as one token is all that is drawn",
}
"""Of `lm.next(text, ...)`."""

_DRAW = "lm(text, ...).sample() draws one, pyro.sample(site, lm(text, ...)) does in a program"
OF_MODELS: Mapping[str, str] = {
    **dict.fromkeys(("generate", "sample", "complete", "completion", "invoke", "predict"), _DRAW),
    **dict.fromkeys(("create_completion", "create_chat_completion"), _DRAW),
    "beam_search": "BeamSearch(beam_width).run(program) of ppl.searchers",
    "compute_transition_scores": "lm(text, ...).log_prob(continuation) is the score",
    "score": "lm(text, ...).log_prob(continuation) is the score",
    "tokenize": "lm.encode(string) gives a Text, lm.codec the tokenizer",
    "decode": "text.text is the string of a Text, lm.codec.decode(tokens) that of ids",
    "tokenizer": "lm.codec has it",
    "apply_chat_template": "lm.chat(messages) makes a Text",
    **dict.fromkeys(
        ("to", "cuda", "half", "bfloat16"), "ppl.load(..., device=, dtype=) says where"
    ),
    **dict.fromkeys(("dtype", "device"), "lm.engine.{name} is that of a model in this process"),
    "config": "lm.model.config is that of a model in this process",
    "save_pretrained": "lm.model is the model of transformers, loaded with pack=False",
}
"""Of language models: attributes that others have."""

OF_SEARCHERS: Mapping[str, str] = {
    "num_return_sequences": "n= of BestOfN",
    "num_samples": "n= of BestOfN",
    "best_of": "n= of BestOfN",
    "samples": "n= of BestOfN",
    "num_solutions": "n=",
    "subtrees": "n=",
    "particles": "num_particles=",
    "n_particles": "num_particles=",
    "N": "num_particles=, or n=",
    "num_beams": "beam_width=",
    "width": "beam_width=",
    "beam_size": "beam_width=",
    "k": "expansions=",
    "branching": "expansions=",
    "branching_factor": "expansions=",
    "num_simulations": "simulations=",
    "iterations": "simulations=",
    "max_iterations": "simulations=",
    "max_expansions": "simulations=",
    "max_nodes": "simulations=",
    "tries": "simulations=",
    "c_puct": "exploration=",
    "exploration_weight": "exploration=",
    "temperature": "lm(text, temperature=...) in the program",
    "max_new_tokens": "lm(text, max_tokens=...) in the program",
    "max_tokens": "lm(text, max_tokens=...) in the program, or budget=ppl.Budget(tokens=) of run",
    "stop": "lm(text, until=...) in the program",
    "max_steps": "the loop of the program",
    "max_depth": "the loop of the program",
    "seed": "run(program, seed=...)",
    "budget": "run(program, budget=ppl.Budget(...))",
    "ess": "ess_threshold=",
}
"""Of searchers, with the names that settings had here before."""

_SAMPLES = "posterior.samples has value, log_weight and text of each"
OF_POSTERIORS: Mapping[str, str] = {
    **dict.fromkeys(("particles", "traces", "results", "candidates", "values"), _SAMPLES),
    **dict.fromkeys(("texts", "completions", "outputs", "choices"), _SAMPLES),
    "answers": "posterior.marginal() has each with its probability, posterior.samples all",
    **dict.fromkeys(("weights", "probs"), "posterior.probabilities, in the order of samples"),
    "log_weights": "[s.log_weight for s in posterior.samples], not normalised",
    **dict.fromkeys(("mode", "answer", "text"), "posterior.vote(), .best or .map"),
    **dict.fromkeys(("log_ml", "log_marginal", "log_z", "logZ"), "posterior.log_evidence"),
    **dict.fromkeys(("mean", "expect"), "posterior.expectation(f)"),
    **dict.fromkeys(("tokens", "usage"), "posterior.cost"),
    "tree": "posterior.genealogy",
}
"""Of posteriors: attributes that others have."""

OF_BUDGETS: Mapping[str, str] = {
    **dict.fromkeys(("token", "max_tokens", "n_tokens", "max_new_tokens"), "tokens="),
    **dict.fromkeys(("call", "max_calls", "queries", "requests", "steps"), "calls="),
    **dict.fromkeys(("second", "time", "timeout", "max_time", "max_seconds"), "seconds="),
    "flops": "tokens=, and posterior.cost says the FLOPs",
}
"""Of `ppl.Budget`."""


def refuse_unknown(
    call: str, given: Collection[str], known: Collection[str], ours: Mapping[str, str]
) -> None:
    """Raises TypeError for keyword arguments that are not known, with our name for them.

    Args:
        call: what was called, as in `lm(...)`.
        given: names of the keyword arguments.
        known: those that there are.
        ours: our words by those of others.
    """
    for name in given:
        if name in known:
            continue
        # A hint that names another setting of this call is one only if there is such a setting.
        hint = ours.get(name, "")
        word = hint.removesuffix("=")
        fits = hint and (not hint.endswith("=") or not known or word in known)
        advice = f"here it is {hint}; " if fits else ""
        settings = f"it takes {', '.join(known)}" if known else "it takes no settings"
        raise TypeError(f"{call} has no argument {name!r}: {advice}{settings}")
