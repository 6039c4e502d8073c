"""Every error that proxykd raises on purpose.

    ProxykdError
    ├── ConfigError (ValueError)        the run specification cannot be used
    ├── InputError (ValueError)         a file or a prompt that the user gave cannot be used
    ├── ModelError (ValueError)         a model is missing, or two models do not fit each other
    ├── ShapeError (ValueError)         tensors whose shapes do not agree
    ├── TeacherError (RuntimeError)     the black box cannot be used at all
    │   ├── TeacherUnreachableError     no answer from its address
    │   ├── TeacherAuthError            it refused our key
    │   └── BudgetError                 what it may cost is spent
    ├── GateError (RuntimeError)        a gate of the run is closed: too few usable rows, say
    ├── BusyError (RuntimeError)        another run has the workspace
    ├── SandboxError (RuntimeError)     programs cannot be run apart from everything else here
    ├── TrackingError (RuntimeError)    MLflow refused or did not answer
    ├── ClusterError (RuntimeError)     the Kubernetes cluster refused, or what runs there failed
    │   ├── ClusterUnreachableError     its API server did not answer until the deadline
    │   ├── ClusterAuthError            it does not know our identity
    │   ├── ClusterForbiddenError       our identity may not do this
    │   ├── ClusterMissingError         an object, or its kind, is not there
    │   └── ClusterConflictError        another object or change came first
    ├── PromotionError (RuntimeError)   the champion is not the expected one, or another promotion came first
    ├── ArtifactError (ValueError)      an artifact is damaged or of another kind
    └── StorageError (OSError)          the disk is full or cannot be written

Each message says what was expected, what came, and what to do next. Every class can be pickled, because steps may
run in processes of their own, and each carries the exit status with which the command line ends.
"""


class ProxykdError(Exception):
    """Base of all errors raised on purpose; catching it catches them all."""

    exit_status = 2


class ConfigError(ProxykdError, ValueError):
    """The run specification cannot be used."""


class InputError(ProxykdError, ValueError):
    """A file or a prompt that the user gave cannot be used."""


class ModelError(ProxykdError, ValueError):
    """A model is missing, or two models do not fit each other."""


class ShapeError(ProxykdError, ValueError):
    """Tensors whose shapes do not agree."""


class TeacherError(ProxykdError, RuntimeError):
    """The black box cannot be used at all (one bad row is data, not an error)."""


class TeacherUnreachableError(TeacherError):
    """No answer came from the teacher's address.

    Attributes:
        was_sent: Whether the request may have arrived there, so that its answer may have been paid for.
    """

    was_sent = True


class TeacherAuthError(TeacherError):
    """The teacher refused our key."""


class BudgetError(TeacherError):
    """A cap of teacher.budget does not allow the next call."""


class GateError(ProxykdError, RuntimeError):
    """A gate of the run is closed."""


class BusyError(ProxykdError, RuntimeError):
    """Another run has the workspace."""


class SandboxError(ProxykdError, RuntimeError):
    """Programs cannot be run apart from everything else on this machine, so none was run."""


class TrackingError(ProxykdError, RuntimeError):
    """MLflow, where runs are tracked and students registered, refused or did not answer."""


class ClusterError(ProxykdError, RuntimeError):
    """The Kubernetes cluster refused, or what runs there failed."""


class ClusterUnreachableError(ClusterError):
    """The API server did not answer, or was overloaded, until the deadline."""


class ClusterAuthError(ClusterError):
    """The API server does not know our identity."""


class ClusterForbiddenError(ClusterError):
    """Our identity may not do this."""


class ClusterMissingError(ClusterError):
    """An object is not there, or the cluster does not know its kind."""


class ClusterConflictError(ClusterError):
    """An object of that name is there already, or somebody else changed it first."""


class PromotionError(ProxykdError, RuntimeError):
    """A champion was not replaced: it is not the expected one, or another promotion came first."""


class ArtifactError(ProxykdError, ValueError):
    """An artifact is damaged, incomplete or of another kind."""


class CodeError(ProxykdError, RuntimeError):
    """The code is not the one that a run was submitted with."""


class StorageError(ProxykdError, OSError):
    """The disk is full or cannot be written."""
