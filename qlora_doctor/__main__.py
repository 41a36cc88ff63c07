"""`python -m qlora_doctor` is `qlora-doctor`."""

import sys

from qlora_doctor.cli import main

if __name__ == "__main__":
    sys.exit(main())
