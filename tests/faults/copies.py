"""`train.py`, or `ds-stage2ab`, on ranks of machines with copies: rank N runs in the folder N of `COPIES`.

The code that is compared is that which lies there, if any: the package's files are read where its `__path__` says.
What runs is the same on all ranks.
"""

import os
import sys
from pathlib import Path

import ds_stage2ab
from ds_stage2ab import cli, train
from ds_stage2ab.runtime.shutdown import excepthook, exit_now

if __name__ == "__main__":
    os.chdir(Path(os.environ["COPIES"]) / os.environ["RANK"])
    if Path("ds_stage2ab").is_dir():
        ds_stage2ab.__path__ = [str(Path("ds_stage2ab").resolve())]
    sys.excepthook = excepthook
    exit_now(train.main() if sys.argv[1].startswith("--") else cli.main())
