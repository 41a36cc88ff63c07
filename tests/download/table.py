"""Prints the matrix of misbehaviours as a Markdown table, with the seconds: `python tests/download/table.py`."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


from qlora_doctor.download import NotDownloaded, Patience, download
from tests.hub_server import MISBEHAVIOURS, hub_server

QUICK = Patience(connect=2, stall=0.7, floor=1000, attempts=8, first=0.01, longest=0.2)


def row(root: Path, only: str, wrong: str) -> str:
    """One line of the table: what came of it, how long it took, and what a second attempt on a sound server made of it."""
    cache = str(root / f"{only}-{wrong}".replace(" ", "-"))
    with hub_server(root / "hub") as server, hub_server(root / "login") as login:
        server.misbehave, server.only, server.after = wrong, only, 6000
        login.misbehave = "html"
        server.storage = login.address if wrong == "portal" else ""
        started = time.monotonic()
        try:
            said = f"loads ({len(download('org/tiny', [server.address], cache=cache, patience=QUICK).fetched)} files)"
        except NotDownloaded as error:
            said = f"`{error.cause}`"
        seconds = time.monotonic() - started
        refs = len(list(Path(cache).glob("models--*/refs/*")))
        server.misbehave = server.storage = ""
        after = download("org/tiny", [server.address], cache=cache, patience=QUICK)
        same = all(
            (Path(after.folder) / p.name).read_bytes() == p.read_bytes() for p in (root / "hub/org/tiny").iterdir()
        )
    trusted = "no" if said.startswith("`") and not refs else "whole"
    where = "files" if only else "everything"
    return f"| {wrong} | {where} | {said} | {seconds:.1f} | {trusted} | {'right' if same else 'WRONG'} |"


def main() -> None:
    print("| misbehaviour | of | load | s | in the cache after it | next load |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "hub" / "org" / "tiny"
        model.mkdir(parents=True)
        (model / "config.json").write_text(json.dumps({"model_type": "llama"}))
        (model / "model.safetensors").write_bytes(bytes(range(250)) * 80)
        for only in ("", "resolve"):
            for wrong in MISBEHAVIOURS:
                print(row(Path(folder), only, wrong), flush=True)


if __name__ == "__main__":
    main()
