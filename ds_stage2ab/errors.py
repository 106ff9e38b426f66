"""Errors that a user can cause: what was seen, where, and what to do about it.

Each class has one exit code. A programmer's mistake is an
`assert`, never one of these; anything else propagates and ends with exit code 1.
"""

EXIT_OK = 0
EXIT_UNCAUGHT = 1
EXIT_CONFIG = 2
EXIT_DATA = 3
EXIT_ENVIRONMENT = 4
EXIT_TRAINING = 5
EXIT_STOPPED = 75
"""sysexits.h calls it EX_TEMPFAIL: stopped on purpose, the same command with `--resume auto` goes on."""

LAST_QUESTIONS_S = 2.0
"""Time-out for reading the other ranks' status after a collective failed, seconds."""


JOINERS = "\u200c\u200d"
"""Zero width, and needed in Persian and Indic words and in emoji."""


def printable(text: str, *, keep_lines: bool = False) -> str:
    """A text that is not ours, for a terminal, a log or a picture: what would control those, or is unseen, is escaped.

    For names of samples and of objects, paths, and what servers and libraries say: a line break in one would forge a
    line of ours, an escape sequence would do worse. A text that was escaped before stays as it is.

    Args:
        keep_lines: leave line breaks as they are; for a whole message, whose parts are escaped.
    """
    kept = JOINERS + "\n" * keep_lines
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode("ascii") for c in text)


class Stage2Error(Exception):
    """A fault with a place and a remedy.

    Args:
        why: what is wrong and what was seen, one sentence without a full stop at the end.
        where: the file:line, key path, URL or sample id; empty if there is none.
        fix: what the user should do; empty if `why` says it.
    """

    code = EXIT_UNCAUGHT
    head = "error"
    # the word before its message

    def __init__(self, why: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        head = f"{printable(self.where)}: {self.why}" if self.where else self.why
        return printable(f"{head}\n  fix: {self.fix}" if self.fix else head, keep_lines=True)

    def __reduce__(self) -> tuple:
        """Errors are sent between ranks: rebuild one with its keyword arguments."""
        return _rebuild, (type(self), self.why, self.where, self.fix)


def _rebuild(kind: type[Stage2Error], why: str, where: str, fix: str) -> Stage2Error:
    return kind(why, where=where, fix=fix)


class ConfigError(Stage2Error):
    """The config, the command line, or a combination of both cannot be run."""

    code = EXIT_CONFIG


class DataError(Stage2Error):
    """A record, an image or a sample is not what the data contract says."""

    code = EXIT_DATA


class EnvironmentFault(Stage2Error):
    """The machine, the checkpoint folder, the disk or a server fails the run."""

    code = EXIT_ENVIRONMENT


def unwritable(path: object, error: OSError) -> EnvironmentFault:
    """What the file system says of a path that a command was told to write."""
    fix = "give a path that you may write to, on a disk with room"
    return EnvironmentFault(f"cannot be written: {error.strerror}", where=str(path), fix=fix)


def unusable_path(error: OSError) -> EnvironmentFault:
    """What the file system says of a path that a user has named, where nothing closer to it has a better remedy."""
    fix = "correct the path; or give it to this user, on a disk with room"
    return EnvironmentFault(f"cannot be used: {error.strerror}", where=str(error.filename), fix=fix)


class ServerFault(EnvironmentFault):
    """A rollout server failed. The weights of the last finished step are valid: the run saves them first."""


class NoServerLeft(ServerFault):
    """All rollout servers have failed in the middle of a batch; it can go on when one has proven itself again.

    As a value among rollouts, segments or packs: the next one comes after that.
    """


class LocalFault(EnvironmentFault):
    """A fault that this rank could not report to the others: each rank that has one prints it."""


class LostRanks(LocalFault):
    """Another rank has died or hangs."""


class TrainingFault(Stage2Error):
    """The training itself became invalid (non-finite loss, a step that was not applied)."""

    code = EXIT_TRAINING


class Stopped(Stage2Error):
    """The run is asked to stop: no fault, and the last finished step is saved."""

    code = EXIT_STOPPED
    head = "stopped"


def exit_code(error: BaseException) -> int:
    """The process exit code for an error: its class's own code, or 1 for anything uncaught."""
    return error.code if isinstance(error, Stage2Error) else EXIT_UNCAUGHT
