"""What an experiment is: its spec, the states it goes through, and the seeds drawn from its one seed.

Nothing here needs torch or a database. The defaults are the paper's (Reasat & Smith, "Data Efficient
Contrastive Learning in Histopathology using Active Sampling", section III-B).
"""

from winnow.domain.datasets import TISSUE_TYPES, DatasetSpec, LabelledDraw, Role, SampleRow, Source, SyntheticTissue
from winnow.domain.experiments import (
    Arm,
    EncoderSpec,
    ExperimentSpec,
    ProxySpec,
    SimclrSpec,
    ViewsSpec,
    total_rounds_of,
)
from winnow.domain.presets import PRESETS, expand
from winnow.domain.seeds import derive_seed
from winnow.domain.spec import Name, Spec, Text
from winnow.domain.states import (
    TRANSITIONS,
    DatasetStatus,
    ExperimentStatus,
    RoundStatus,
    allowed_from,
    has_ended,
    is_final,
    require_transition,
)

__all__ = [
    "PRESETS",
    "TISSUE_TYPES",
    "TRANSITIONS",
    "Arm",
    "DatasetSpec",
    "DatasetStatus",
    "EncoderSpec",
    "ExperimentSpec",
    "ExperimentStatus",
    "LabelledDraw",
    "Name",
    "ProxySpec",
    "Role",
    "RoundStatus",
    "SampleRow",
    "SimclrSpec",
    "Source",
    "Spec",
    "SyntheticTissue",
    "Text",
    "ViewsSpec",
    "allowed_from",
    "derive_seed",
    "expand",
    "has_ended",
    "is_final",
    "require_transition",
    "total_rounds_of",
]
