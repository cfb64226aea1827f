"""Does Eutectic give the numbers of mergekit, PEFT and FusionBench where those are right? Writes docs/parity.md.

    python benchmarks/make_peers.py
    python benchmarks/check_parity.py

Single tensors by every method that a peer has too, then random masks, then whole merges through mergekit's command.
Exits 1 at a difference without a reason, and at a reason without a difference. Takes about two minutes.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import peer as peers
from measure import version
from parity import cases, compare, masks, merges, page, reasons

import report

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "parity.md"


def main() -> int:
    """Compares with every peer there is; writes the page when all are there."""
    found = {name: peer for name in peers.PACKAGES if (peer := peers.find(name))}
    for name in peers.PACKAGES.keys() - found.keys():
        print(f"skipped: {name} is not there; run benchmarks/make_peers.py or set {peers.PACKAGES[name].variable}")
    outcomes, draws, whole = [], [], []
    for name, peer in found.items():
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            outcomes += compare.compare([case for case in cases.exact() if case.peer == name], peer, folder)
            draws += masks.compare([case for case in cases.masked() if case.peer == name], peer, folder)
            whole += merges.compare(peer, folder) if name == "mergekit" else []
    unexplained = [outcome for outcome in outcomes if not outcome.agrees and reasons.why(outcome) is None]
    wrong = [page.described(outcome) for outcome in unexplained]
    wrong += [f"{draw.case.name}: the masks differ" for draw in draws if not draw.agrees]
    wrong += [f"{merge.recipe.title}: {', '.join(merge.faults)}" for merge in whole if merge.faults]
    if len(found) == len(peers.PACKAGES):
        wrong += [f"explains nothing: {text}" for text in reasons.unused(outcomes)]
        versions = {peer.package.title: peer.version for peer in found.values()}
        body = page.text(versions, version("eutectic"), outcomes, draws, whole, len(wrong))
        report.write(DOCUMENT, body, page.MARKERS)
    print("\n".join(wrong) or f"{len(outcomes)} tensors and {len(whole)} merges: every difference has its reason")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
