"""Faults in files: what is stored, and what is refused when it is read."""

from fault import Fault

CONTAINER, STORE = "ppl/posterior/container.py", "ppl/posterior/store.py"
STORED, HOSTILE = "tests/test_stored.py", "tests/test_hostile_files.py"
SEARCHES = "tests/test_stored_searches.py"
NOTEBOOKS, SOURCE = "tests/test_stored_notebooks.py", "tests/test_source.py"
CODE, SAID = "ppl/runtime/source.py", "searchers/said.py"
READS = "ppl/runtime/reads.py"

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
        "tests/test_stored.py",
    ),
    Fault(STORE, "        container.refuse(str(what))\n", "        raise\n", HOSTILE),
    Fault(SAID, 'if row["code"] != now:', "if False:", f"{NOTEBOOKS} -k changed"),
    Fault(SAID, 'other_use(row["uses"], uses_of(function))', "None", f"{NOTEBOOKS} -k changed"),
    Fault(
        "searchers/stored.py",
        '            check(kept["others"][path], found, path, "")\n',
        "            pass\n",
        f"{NOTEBOOKS} -k arguments",
    ),
    Fault(CODE, "in _GLOBAL} - sets)", "in _GLOBAL})", f"{SOURCE} -k again"),
    Fault(CODE, "_collect(value, module, found, seen)", "pass", f"{SOURCE} -k beside"),
    Fault(CODE, "if found.get(name) == _CHANGES or", "if", f"{SOURCE} -k any_helper"),
    Fault(CODE, "        parts.sort()\n", "        pass\n", f"{SOURCE} -k order"),
    Fault(READS, "if inner is name:\n", "if True:\n", f"{SOURCE} -k only_read"),
    Fault(READS, "in _BUILTINS - own and", "in _BUILTINS and", f"{SOURCE} -k only_read"),
    Fault(CODE, "for node in tree.body] != [name]:", "for node in tree.body] == []:", SOURCE),
    Fault(
        "searchers/watching.py",
        "redirect_stdout=Console().is_terminal,",
        "redirect_stdout=True,",
        "tests/test_watching.py -k script_prints",
    ),
    Fault(
        "searchers/watching.py",
        "console = Console(stderr=True)",
        "console = Console()",
        "tests/test_watching.py -k into_a_file",
    ),
    Fault(
        "ppl/language/classes.py",
        "is not parent[above]:",
        "!= parent[above]:",
        "tests/test_counted.py -k itself",
    ),
    Fault(
        "ppl/language/classes.py",
        "case Number() if value != value:",
        "case float() if value != value:",
        "tests/test_counted.py -k one_class",
    ),
    Fault(
        "ppl/study/config.py",
        "if (changed := other_use(before, now)) is not None:",
        "if changed := None:",
        "tests/test_study_workers.py -k helpers",
    ),
]
