"""Two processes add their numbers up, as two GPUs of one run do."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile


def main(arguments: list[str]) -> dict[str, object]:
    """`arguments`: the backend, how many ranks; a rank itself gets its number and the file where they meet as well."""
    backend, size = arguments[0], int(arguments[1])
    if len(arguments) == 4:
        return rank(backend, size, int(arguments[2]), arguments[3])
    with tempfile.TemporaryDirectory() as folder:
        meeting = os.path.join(folder, "meeting")
        command = [sys.executable, "-X", "faulthandler", "-B", os.path.abspath(__file__), backend, str(size)]
        running = [
            subprocess.Popen([*command, str(n), meeting], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for n in range(size)
        ]
        ended = [(process.communicate()[1], process.returncode) for process in running]
    for number, (err, code) in enumerate(ended):
        if code:
            lines = [line for line in err.decode("utf-8", "replace").splitlines() if line.strip()]
            how = f"was ended by signal {-code}" if code < 0 else "failed"
            detail = "rank {} {}: {}".format(number, how, lines[-1].strip() if lines else "without a word")
            return {"outcome": "failed", "detail": detail}
    return {"outcome": "ok", "detail": f"{size} ranks"}


def rank(backend: str, size: int, number: int, meeting: str) -> dict[str, object]:
    """One of the processes. Raises where the sum is wrong."""
    import datetime

    import torch
    from torch import distributed

    distributed.init_process_group(
        backend,
        init_method="file://" + meeting,
        rank=number,
        world_size=size,
        timeout=datetime.timedelta(seconds=20),
    )
    device = torch.device("cuda", number) if backend == "nccl" else torch.device("cpu")
    total = torch.full((1024,), float(number + 1), device=device)
    distributed.all_reduce(total)
    expected = sum(range(1, size + 1))
    if not bool((total == expected).all()):
        raise SystemExit(f"the sum is {float(total[0])} where {expected} is right")
    distributed.destroy_process_group()
    return {"outcome": "ok"}


if __name__ == "__main__":
    sys.path.pop(0)
    main(sys.argv[1:])
