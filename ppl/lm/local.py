"""Models run in this process, by name: what `ppl.load` does with folders, files and Hub ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from transformers import AutoModelForCausalLM

from ppl.lm.base import LanguageModel
from ppl.lm.drafts import Drafts
from ppl.lm.engine.quantised import name_with
from ppl.lm.eviction import Eviction
from ppl.lm.huggingface import HFModel
from ppl.lm.pretrained import load_pretrained
from ppl.lm.sources import embedded, name_of


def local(
    source: str | Path,
    *,
    context_length: int | None,
    kv_bytes: int,
    kv: str | Eviction,
    graphs: bool,
    compile: bool | Literal["auto"],
    drafts: str | LanguageModel | Drafts | None,
    replicas: None,
    **files: Any,
) -> HFModel:
    """Arguments as in `ppl.load`."""
    folder = embedded(source, "lm")
    model, tokenizer = load_pretrained(AutoModelForCausalLM, folder, **files)
    name = name_of(source)
    if files["adapter"] is not None:
        name += f"+{files['adapter']}"
    return HFModel(
        model,
        tokenizer,
        name=name_with(name, files["weights"]),
        context_length=context_length,
        kv_bytes=kv_bytes,
        kv=kv,
        graphs=graphs,
        compile=compile,
        drafts=drafts,
    )
