"""The one exception that people are meant to read.

Whatever a user can mend (a key, a file, a port, a full disk) is raised as a `PanthalassaError`
whose text says what was found, where, and what mends it. The command line prints that text alone;
every other exception is a defect of the program and keeps its traceback.
"""


class PanthalassaError(Exception):
    """Something outside the program is wrong; the message names it and the remedy.

    `agreed`: all ranks of a run raise it together, and none waits for another.
    """

    agreed = False


class ConfigError(PanthalassaError):
    """The configuration, or a combination of its keys, can not be run."""


class CorpusError(PanthalassaError):
    """A source, shard or manifest is missing, unreadable, or not what its hash says."""


class ShardError(CorpusError):
    """One shard is missing, or is not what its hash says."""


class CheckpointError(PanthalassaError):
    """A checkpoint can not be written, or is torn, rotten, or of another model."""


class CorruptError(CheckpointError):
    """A checkpoint is not what was written: a file is missing, cut off, or not what its hash says."""


class ChatError(PanthalassaError):
    """A chat that a model's template can not put, or a template that is none."""
