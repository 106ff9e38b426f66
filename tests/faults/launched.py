"""`ds-stage2ab launch` whose ranks run `fake_learner.py` under the real DeepSpeed launcher and a line every second."""

import sys
from pathlib import Path

from ds_stage2ab import cli
from ds_stage2ab.launch import command

real = command.learner_command


def with_fake_learner(*arguments):
    words, variables = real(*arguments)
    fake_learner = str(Path(__file__).with_name("fake_learner.py"))
    return [fake_learner if word.endswith("ds_stage2ab/train.py") else word for word in words], variables


if __name__ == "__main__":
    command.learner_command = with_fake_learner
    command.TELL_EVERY_S = 1
    sys.exit(cli.main())
