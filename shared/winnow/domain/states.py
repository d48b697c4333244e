"""The states of datasets, experiments and rounds, and the one table of transitions."""

from enum import StrEnum

from winnow.errors import WrongState


class DatasetStatus(StrEnum):
    QUEUED = "queued"
    INGESTING = "ingesting"
    READY = "ready"
    FAILED = "failed"
    REMOVING = "removing"


class ExperimentStatus(StrEnum):
    CREATED = "created"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def lets_work(self) -> bool:
        """Whether its rounds may be claimed, and whoever works on one may go on."""
        return self in (ExperimentStatus.CREATED, ExperimentStatus.RUNNING)

    @property
    def is_called_off(self) -> bool:
        """Whether a round that is given back ends, instead of waiting for another try."""
        return self in (ExperimentStatus.CANCELLING, ExperimentStatus.CANCELLED)

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing more happens to it by itself."""
        return self is ExperimentStatus.PAUSED or has_ended(self)


class RoundStatus(StrEnum):
    QUEUED = "queued"
    TRAINING = "training"
    TRAINED = "trained"
    SELECTING = "selecting"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


_D, _E, _R = DatasetStatus, ExperimentStatus, RoundStatus

TRANSITIONS: dict[type[StrEnum], dict[StrEnum, tuple[StrEnum, ...]]] = {
    DatasetStatus: {
        _D.QUEUED: (_D.INGESTING, _D.REMOVING),
        _D.INGESTING: (_D.READY, _D.QUEUED, _D.FAILED),
        _D.READY: (_D.REMOVING,),
        _D.FAILED: (_D.QUEUED, _D.REMOVING),
        _D.REMOVING: (),
    },
    ExperimentStatus: {
        _E.CREATED: (_E.RUNNING, _E.PAUSING, _E.CANCELLING, _E.FAILED),
        _E.RUNNING: (_E.PAUSING, _E.CANCELLING, _E.COMPLETED, _E.FAILED),
        _E.PAUSING: (_E.PAUSED, _E.RUNNING, _E.CANCELLING, _E.COMPLETED, _E.FAILED),
        _E.PAUSED: (_E.RUNNING, _E.CANCELLING),
        _E.CANCELLING: (_E.CANCELLED,),
        _E.COMPLETED: (),
        _E.FAILED: (_E.RUNNING, _E.CANCELLING),
        _E.CANCELLED: (),
    },
    RoundStatus: {
        _R.QUEUED: (_R.TRAINING, _R.CANCELLED),
        _R.TRAINING: (_R.TRAINED, _R.QUEUED, _R.FAILED, _R.CANCELLED),
        _R.TRAINED: (_R.SELECTING, _R.CANCELLED),
        _R.SELECTING: (_R.DONE, _R.TRAINED, _R.FAILED, _R.CANCELLED),
        _R.DONE: (),
        _R.FAILED: (_R.QUEUED, _R.TRAINED, _R.CANCELLED),
        _R.CANCELLED: (),
    },
}
"""The one transition table: from each state, the states it may become."""


def allowed_from(status: StrEnum) -> tuple[StrEnum, ...]:
    """The states that `status` may become."""
    return TRANSITIONS[type(status)][status]


def require_transition(kind: str, id: str, current: StrEnum, target: StrEnum) -> None:
    """Raise WrongState unless the table allows `current` → `target`."""
    if target not in allowed_from(current):
        raise WrongState(kind, id, current, target, allowed_from(current))


def is_final(status: StrEnum) -> bool:
    """A state that nothing leaves."""
    return not allowed_from(status)


def has_ended(status: StrEnum) -> bool:
    """A state in which the work is over: a final one, or failed (of any kind), which people alone take up again."""
    return is_final(status) or status.value == "failed"
