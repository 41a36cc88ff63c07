"""`python -m qlora_doctor.docs [DOCS]`: writes every generated page and picture, and the reports that documents show."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from qlora_doctor.docs import pages, with_reports, write
from qlora_doctor.docs.symptoms import symptom_pages
from qlora_doctor.docs.tables import table_page
from qlora_doctor.logs.signatures import installed_signatures
from qlora_doctor.registry import installed_checks

SHOWING = ("README.md", "docs/start.md")


def main(docs: Path) -> None:
    """Writes what is stale under `docs`, and the reports that the documents of its project show."""
    ours = tuple(s for s in installed_signatures().all if s.distribution == "qlora-doctor")
    changed = write(docs, {**pages(installed_checks().checks), **symptom_pages(ours), **table_page()})
    if find_spec("rich") is None or sys.platform == "win32":
        print(
            "the pictures are left as they are: rich (the extra docs) or a pseudo-terminal is missing", file=sys.stderr
        )
    else:
        from qlora_doctor.docs.pictures import pictures

        changed += write(docs, pictures(docs.parent))
    for path in changed:
        print(docs / path)
    for name in SHOWING:
        document = docs.parent / name
        old = document.read_text(encoding="utf-8")
        new = with_reports(old, docs.parent)
        if new != old:
            document.write_text(new, encoding="utf-8", newline="\n")
            print(document)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs").resolve())
