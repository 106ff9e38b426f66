"""`train.py` on ranks of machines with copies: rank N runs in the folder N of `COPIES`, with the code that lies there.

Files of the package are read where its `__path__` says; what runs is the same on all ranks.
"""

import os
import sys
from pathlib import Path

import ds_stage2ab
from ds_stage2ab import train
from ds_stage2ab.runtime.shutdown import excepthook, exit_now

if __name__ == "__main__":
    os.chdir(Path(os.environ["COPIES"]) / os.environ["RANK"])
    if Path("ds_stage2ab").is_dir():
        ds_stage2ab.__path__ = [str(Path("ds_stage2ab").resolve())]
    sys.excepthook = excepthook
    exit_now(train.main())
