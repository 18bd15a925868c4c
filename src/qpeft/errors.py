"""The exceptions a user can act on. The command line prints their one sentence, without a traceback."""


class QPeftError(Exception):
    """Base of every error that names what is wrong and what to do about it."""


class InputError(QPeftError, ValueError):
    """A value given by the user (flag, recipe, data, model, adapter) cannot be used; ends the command with code 2."""


class MergeError(QPeftError, NotImplementedError):
    """An adapter that is not a fixed matrix was asked to become one."""


class MissingDependencyError(QPeftError, ImportError):
    """An optional package is needed for what was asked; the message holds the command that installs it."""


class TrainingError(QPeftError, RuntimeError):
    """Training had to stop, as at a loss that is not a number; the message says which step and what is saved."""


class Diverged(TrainingError):
    """A loss, a gradient or a trained number stopped being finite."""


class Interrupted(QPeftError):
    """The user stopped a run that can go on later; the message holds the command that resumes it."""
