"""Posteriors as files: a loaded one answers as it did; versions are read or refused by name."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import zipfile

import pyro
import pyro.distributions as dist
import pytest
import torch
from accuracy_vs_budget import solve
from files import Payload, refused, rewrite, with_meta
from programs import TOY, contents, toy

import ppl
from ppl.errors import TokenizerError
from ppl.posterior import container
from ppl.searchers import SMC, Search, VectorizedSMC


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "posterior"
    SMC(3).run(toy, "prod", seed=0).save(path)
    return path


def knows(posterior: ppl.Posterior):
    """All that a posterior answers."""
    sites = [
        {n: (str(s["value"]), float(s.get("log_prob_sum", 0.0)), s.get("is_observed"))
         for n, s in sample.trace.nodes.items()}
        for sample in posterior.samples
    ]  # fmt: skip
    samples = [
        (s.value, s.log_weight, s.log_likelihood, s.log_joint, s.finished, s.node, s.provisional)
        for s in posterior.samples
    ]
    texts = [s.text and (s.text.tokens, s.text.steps, s.text.prompt, s.text.answer)
             for s in posterior.samples]  # fmt: skip
    answers = (posterior.best, posterior.map, posterior.vote(), posterior.vote(weights="flat"))
    graph = posterior.genealogy
    return (
        sites, samples, texts, answers, posterior.marginal(), posterior.sample(3), posterior.ess,
        posterior.log_evidence, posterior.cost, posterior.stopped, posterior.history,
        dict(graph.nodes(data=True)), list(graph.edges), str(posterior), posterior._repr_html_(),
        posterior.models,
    )  # fmt: skip


def test_a_loaded_posterior_answers_as_it_did(tiny, tmp_path):
    lm, prm = tiny
    for posterior in (
        SMC(6, 1.0).run(solve, "Calculate 2 + 2 - 3.", lm, prm, seed=0),
        SMC(6, 0.9).run(toy, "mean", seed=1),
        SMC(6).run(toy, "prod", seed=1, budget=ppl.Budget(tokens=7)),
    ):
        posterior.save(tmp_path / "p")
        again = ppl.Posterior.load(tmp_path / "p")
        assert knows(again) == knows(posterior)
        again.save(tmp_path / "q")
        assert knows(ppl.Posterior.load(tmp_path / "q")) == knows(posterior)


def test_a_file_says_which_models_were_asked_and_what_texts_say(tiny, tmp_path):
    lm, prm = tiny
    posterior = SMC(2).run(solve, "Calculate 2 + 2 - 3.", lm, prm, seed=0)
    posterior.save(tmp_path / "p")
    with zipfile.ZipFile(tmp_path / "p") as archive:
        meta = json.loads(archive.read("meta.json"))
        texts = [json.loads(line) for line in archive.read("texts.jsonl").splitlines()]
    assert (meta["format"], meta["version"]) == ("ppl-posterior", container.VERSION)
    assert meta["searcher"] == "SMC(num_particles=2, ess_threshold=0.5, resampling='systematic', " \
        "resampling_temperature=1.0, tempering=())"  # fmt: skip
    models = {row["loaded"]["loader"]: row for row in meta["models"]}
    assert models["ppl.lm.loading:load"]["loaded"]["source"] == "tiny"
    assert models["ppl.lm.loading:load"]["tokenizer"] == lm.codec.identity.fingerprint
    assert "ppl.verifiers.models.prm:PRM.load" in models
    assert {text["string"] for text in texts} >= {s.text.text for s in posterior.samples}


def test_loaded_texts_are_read_and_their_model_goes_on_with_them(tiny, tmp_path):
    lm, prm = tiny
    posterior = SMC(2).run(solve, "Calculate 2 + 2 - 3.", lm, prm, budget=ppl.Budget(tokens=8))
    posterior.save(tmp_path / "p")
    text = next(s.text for s in ppl.Posterior.load(tmp_path / "p").samples if not s.text.finished)
    with pytest.raises(TokenizerError, match=r"from a file only, which cannot encode ' and'"):
        text + " and"
    assert text.codec == lm.codec
    step = lm(text, max_tokens=3).sample()
    assert (text + step).tokens[: len(text)] == text.tokens
    with pytest.raises(TokenizerError):
        TOY(text, max_tokens=1)


def test_vectorised_posteriors_come_back(tmp_path):
    def walk():
        x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.3))
        return x

    posterior = VectorizedSMC(50).run(walk, seed=1)
    posterior.save(tmp_path / "p")
    assert knows(ppl.Posterior.load(tmp_path / "p")) == knows(posterior)


def half():
    x = pyro.sample("x", dist.Normal(torch.zeros((), dtype=torch.bfloat16), 1.0))
    pyro.factor("f", -(x.float() ** 2))
    return x


def test_half_precision_is_kept_as_its_bits(tmp_path):
    posterior = SMC(4, 1.0).run(half, seed=2)
    posterior.save(tmp_path / "p")
    again = ppl.Posterior.load(tmp_path / "p")
    assert [s.value.dtype for s in again.samples] == [torch.bfloat16] * 4
    assert [float(s.value) for s in again.samples] == [float(s.value) for s in posterior.samples]
    search = SMC(4, 1.0).begin(half, seed=2)
    search.step()
    search.save(tmp_path / "s")
    ended = Search.load(tmp_path / "s").run()
    assert [float(s.value) for s in ended.samples] == [float(s.value) for s in posterior.samples]


# -- versions ------------------------------------------------------------------------------------


def test_costs_go_by_the_names_of_their_columns(file):
    cost = ppl.Posterior.load(file).cost
    row = {f.name: getattr(cost, f.name) for f in dataclasses.fields(cost) if f.name != "models"}
    shuffled = dict(reversed(row.items())) | {"models": {}}
    rewrite(file, with_meta(cost=shuffled))
    assert {**row, "models": {}} == dataclasses.asdict(ppl.Posterior.load(file).cost)
    del shuffled["reused_tokens"]  # as if the file were older than this column
    rewrite(file, with_meta(cost=shuffled))
    older = ppl.Posterior.load(file).cost
    assert (older.reused_tokens, older.seconds) == (0, cost.seconds)
    rewrite(file, with_meta(cost={**shuffled, "grams_of_carbon": 3}))
    refused(file, "column 'grams_of_carbon' of Cost is not known here: a newer version")


def test_other_versions_are_refused_by_name(file):
    rewrite(file, with_meta(version=3, library="9.9"))
    refused(file, "version 3 of the format, written by library '9.9'; this library reads version 2")


def test_new_columns_are_refused_and_missing_ones_have_defaults(file):
    def change(key, value):
        def changed(old):
            rows = [json.loads(line) for line in old.splitlines()]
            for row in rows:
                row.pop(key, None)
                row.update({} if value is None else {key: value})
            return "\n".join(map(json.dumps, rows)).encode()

        return changed

    before = contents(ppl.Posterior.load(file))
    rewrite(file, {"samples.jsonl": change("provisional", None)})
    assert contents(ppl.Posterior.load(file)) == before
    rewrite(file, {"records.jsonl": change("mood", 1)})
    refused(file, "column 'mood' of Record is not known here")
    rewrite(file, {"records.jsonl": change("mood", None), "samples.jsonl": change("node", None)})
    refused(file, "column 'node' of Sample is missing")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(("tag", "load"), [
    ("ppl-posterior-1", ppl.Posterior.load), ("ppl-search-1", Search.load),
])  # fmt: skip
def test_pickles_of_earlier_versions_are_refused_and_never_run(tag, load, protocol, tmp_path):
    path = tmp_path / "old"
    path.write_bytes(pickle.dumps((tag, Payload()), protocol=protocol))
    message = refused(path, load=load)
    if protocol >= 2:
        assert re.search(f"pickle, of format '{tag}'.*never does.*version that wrote it", message)
    assert not Payload.ran
