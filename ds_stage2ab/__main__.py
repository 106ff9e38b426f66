"""`python -m ds_stage2ab` is the console script."""

import sys

from ds_stage2ab.cli import main

if __name__ == "__main__":
    sys.exit(main())
