"""Where patches come from, and what each may be used for."""

from enum import StrEnum
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from winnow.domain.spec import Name, Seed, Spec, StoredText

Label = Annotated[StoredText, Field(min_length=1)]


class Role(StrEnum):
    """What a sample may be used for. `pool` is unlabelled to the method, whatever its file says."""

    POOL = "pool"
    LABELLED = "labelled"
    VALIDATION = "validation"
    TEST = "test"


class SampleRow(NamedTuple):
    """One packed patch. `idx` is its row in the shards, and stable for ever.

    There are millions: an object that a session or a model keeps of each would take several times as long.
    """

    idx: int
    key: str
    role: Role
    label: str | None
    group: str | None


class Source(Spec):
    """Where images come from.

    folder    class sub-folders of PNG, JPEG or TIFF
    manifest  CSV or Parquet with `path`, and any of `label`, `group`, `role`; paths relative to `root`
    npz       MedMNIST style: `{split}_images` and `{split}_labels`; without a role of the source, train is pool,
              val validation and test test
    synthetic seeded H&E-like tissue, for demonstrations and tests
    """

    kind: Literal["folder", "manifest", "npz", "synthetic"]
    path: StoredText | None = Field(
        default=None, min_length=1, description="Folder, manifest file or .npz; not for synthetic"
    )
    root: StoredText | None = Field(
        default=None,
        description="Manifest only: the folder its paths start from; by default, and if relative, the manifest's own",
    )
    role: Role | None = Field(
        default=None,
        description="Role of every sample whose manifest row or split in `splits` gives none. null: pool; an npz's "
        "train, val and test are pool, validation and test",
    )
    columns: dict[Literal["path", "label", "group", "role"], StoredText] = Field(
        default_factory=dict, description="Manifest only: other names of its columns"
    )
    splits: dict[StoredText, Role] = Field(
        default_factory=dict,
        description="Words of a manifest's role column, top folders or npz splits → role: {train: pool, val: test}",
    )
    labels: dict[StoredText, Label] = Field(default_factory=dict, description="Rename labels, e.g. {'0': non_idc}")
    synthetic: "SyntheticTissue | None" = None

    @model_validator(mode="after")
    def _needs_its_place(self) -> Self:
        if (self.kind == "synthetic") == (self.path is not None):
            raise ValueError(f"a {self.kind} source {'takes no' if self.path else 'needs a'} path")
        if self.kind != "manifest" and (self.root is not None or self.columns):
            raise ValueError(f"a {self.kind} source takes no root and no columns; a manifest does")
        if self.kind == "synthetic" and self.splits:
            raise ValueError("a synthetic source takes no splits; synthetic.test_slides holds slides out")
        if self.kind != "synthetic" and self.synthetic is not None:
            raise ValueError(f"a {self.kind} source takes no synthetic")
        return self

    @property
    def role_or_pool(self) -> Role:
        """The role of a sample that nothing else gives one."""
        return self.role or Role.POOL


TISSUE_TYPES = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
"""The nine classes of NCT-CRC-HE (Kather et al. 2018)."""


class SyntheticTissue(Spec):
    """H&E-like patches of the nine tissue types of NCT-CRC-HE, drawn in optical-density space."""

    patches: int = Field(default=2000, ge=1, le=200_000, description="How many, at most 200,000")
    slides: int = Field(
        default=10, ge=1, le=10_000, description="Each slide has its own stain shift; it is the group key"
    )
    balance: dict[StoredText, Annotated[float, Field(ge=0, le=1e6)]] = Field(
        default_factory=dict, description="Relative frequency by tissue type; those not named have 1.0 each"
    )
    test_slides: int = Field(
        default=0, ge=0, description="The last k slides get role test; the others the source's role"
    )
    seed: Seed = Field(default=0, description="Tissue types, slides, stains and cells come from it")

    @model_validator(mode="after")
    def _is_drawable(self) -> Self:
        unknown = sorted(set(self.balance) - set(TISSUE_TYPES))
        if unknown:
            raise ValueError(f"balance: {unknown[0]!r} is no tissue type; they are {', '.join(TISSUE_TYPES)}")
        if not any(self.balance.get(name, 1.0) for name in TISSUE_TYPES):
            raise ValueError("balance: needs a frequency above 0 for one type or more")
        if self.test_slides >= self.slides:
            raise ValueError(f"test_slides: {self.test_slides} of {self.slides} slides leave none for the pool")
        return self


class LabelledDraw(Spec):
    """Take n samples of one role and make them another, at random or by label strata.

    A draw into `test` or `validation` takes whole groups where groups exist, as many as reach `count`. A draw
    into `labelled` takes patches, and leaves the rest of their group in the pool, as the paper does.
    """

    count: int = Field(ge=1, description="How many")
    role: Role = Role.LABELLED
    from_role: Role = Role.POOL
    source: int | None = Field(
        default=None, ge=0, description="Draw from this source alone, by its place in `sources`, from 0"
    )
    by: Literal["random", "stratum"] = "random"
    seed: Seed = Field(default=0, description="Seed of this draw")

    @model_validator(mode="after")
    def _moves_something(self) -> Self:
        if self.role is self.from_role:
            raise ValueError(f"from_role: a draw from {self.role} into {self.role} moves nothing")
        return self


class DatasetSpec(Spec):
    """Sources, roles and the size at which patches are packed."""

    name: Name
    sources: list[Source] = Field(min_length=1)
    draws: list[LabelledDraw] = Field(default_factory=list)
    image_size: int = Field(
        default=224, ge=8, le=1024, description="Pixels a side; other sizes are resized and counted"
    )
    on_unreadable: Literal["fail", "skip"] = "fail"
    max_pixels: int = Field(
        default=50_000_000, ge=1, le=178_000_000, description="Images above this many pixels count as unreadable"
    )
    shard_size: int = Field(default=4096, ge=1, le=1_000_000, description="Patches in one packed shard")
