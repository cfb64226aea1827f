"""The tasks of `eutectic evaluate` that the specialists and their merges are measured by."""

from __future__ import annotations

import json
from pathlib import Path

from domains import DOMAINS, GUARD, PARTS, documents

# All domains at once: what a merge is chosen by.
TARGET = "specialities"
COUNTS = {"dev": 12, "test": 24}  # documents of each domain


def write_tasks(folder: Path) -> None:
    """Writes `dev/NAME.yml` and `test/NAME.yml`, each a perplexity, with the texts beside them.

    `dev` has `TARGET` and `GUARD`, to choose a merge by; `test` has every domain and `GUARD`, to report it.
    """
    for part in PARTS:
        texts = {name: documents(name, part, COUNTS[part]) for name in (*DOMAINS, GUARD)}
        if part == "dev":
            texts = {TARGET: [text for name in DOMAINS for text in texts[name]], GUARD: texts[GUARD]}
        (folder / part).mkdir(parents=True, exist_ok=True)
        for name, rows in texts.items():
            lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in rows)
            (folder / part / f"{name}.jsonl").write_text(lines, encoding="utf-8")
            (folder / part / f"{name}.yml").write_text(f"task: perplexity\ndata: {name}.jsonl\n", encoding="utf-8")
