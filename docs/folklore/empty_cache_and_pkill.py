"""Claim: after "CUDA out of memory", run `python -c "import torch; torch.cuda.empty_cache()"` and `pkill -f python`.

The first is a process of its own: it has no cache. The second ends more than the failed run; this script only looks at
what the pattern would match and ends nothing. Linux.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

COMMAND = "import torch; torch.cuda.empty_cache(); print(torch.cuda.is_initialized(), torch.cuda.memory_reserved())"


def matched(pattern: str) -> set[int]:
    """The processes whose command line holds the pattern: what `pkill -f` would end."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                line = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if pattern.encode() in line:
                found.add(int(folder.name))
    return found


def measure() -> dict[str, Any]:
    """What the first command frees, and whether the second would end somebody else's program."""
    said = subprocess.run([sys.executable, "-c", COMMAND], capture_output=True, text=True, check=True).stdout.split()
    with tempfile.TemporaryDirectory() as folder:
        notebook = Path(folder, "somebody_elses_notebook.py")
        notebook.write_text("import time\nprint('up', flush=True)\ntime.sleep(60)\n")
        command = [sys.executable, str(notebook), "--kernel=python3"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as innocent:
            assert innocent.stdout is not None and innocent.stdout.readline() == "up\n"
            hit = innocent.pid in matched("python")
            innocent.terminate()
    return {
        "empty_cache in a fresh process touched the GPU": said[0] == "True",
        "bytes that process held and could give back": int(said[1]),
        "pkill -f python would have ended an unrelated notebook": hit,
    }


if __name__ == "__main__":
    for case, seen in measure().items():
        print(f"{case}: {seen}")
