"""Faults in files: what is stored, and what is refused when it is read."""

from fault import Fault

CONTAINER, STORE = "ppl/posterior/container.py", "ppl/posterior/store.py"
STORED, HOSTILE = "tests/test_stored.py", "tests/test_hostile_files.py"
SEARCHES = "tests/test_stored_searches.py"

FAULTS = [
    Fault(CONTAINER, "if not _ENTRY.fullmatch(name):", "if False:", f"{HOSTILE} -k harm"),
    Fault(
        CONTAINER,
        "        if name in found:\n",
        "        if False:\n",
        f"{HOSTILE} -k 'doubled or harm'",
    ),
    Fault(
        CONTAINER,
        "if info.file_size > _SMALL + _MOST_DEFLATED * info.compress_size:",
        "if False:",
        f"{HOSTILE} -k harm",
    ),
    Fault(CONTAINER, 'if meta.get("version") != VERSION:', "if False:", f"{STORED} -k versions"),
    Fault(
        CONTAINER,
        'if meta.get("format") != f"ppl-{self.kind}":',
        "if False:",
        f"{STORED} {SEARCHES} {HOSTILE}",
    ),
    Fault(CONTAINER, "if not isinstance(self.meta, dict):", "if False:", HOSTILE),
    Fault(
        STORE,
        'if f.name != "models"}',
        'if f.name not in ("models", "seconds")}',
        f"{STORED} -k costs",
    ),
    Fault(STORE, "        container.refuse(str(what))\n", "        raise\n", HOSTILE),
]
