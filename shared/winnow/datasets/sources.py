"""Every image of a dataset, from all of its sources, in one stable order."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from winnow.datasets import synthetic
from winnow.datasets.decode import Decoded, Picture
from winnow.datasets.entries import NO_LABEL, Allow, Entries, Entry, Listing, Words
from winnow.datasets.folder import list_folder
from winnow.datasets.manifest import list_manifest
from winnow.datasets.npz import list_npz
from winnow.domain import DatasetSpec, Role, Source, SyntheticTissue
from winnow.errors import InvalidInput

MOST_LABELS = 10_000
"""Of one source: each stands in the dataset's row, which every list of datasets shows."""


@dataclass(frozen=True)
class TissuePicture:
    """A synthetic patch, drawn when it is read."""

    tissue: SyntheticTissue
    index: int

    def read(self, size: int) -> Decoded:
        return Decoded(synthetic.draw(self.tissue, self.index, size))

    def mark(self) -> str:
        return ""


def list_sources(spec: DatasetSpec, *, allow: Allow) -> Listing:
    """The entries of all sources, in the order of `spec.sources` and by key within each.

    Where there are several sources, keys start with the source's number, so that they are unique.

    Raises InvalidInput with the source's field, PathForbidden.
    """
    listings = [_list(source, number, spec, allow) for number, source in enumerate(spec.sources)]
    entries = Entries.join([listing.entries for listing in listings])

    def pictures(start: int) -> Iterator[Picture]:
        for listing in listings:
            if start < len(listing.entries):
                yield from listing.pictures(start)
            start = max(start - len(listing.entries), 0)

    return Listing(entries, pictures)


def _list(source: Source, number: int, spec: DatasetSpec, allow: Allow) -> Listing:
    match source.kind:
        case "folder":
            listing = list_folder(source, number, allow=allow, max_pixels=spec.max_pixels)
        case "manifest":
            listing = list_manifest(source, number, allow=allow, max_pixels=spec.max_pixels)
        case "npz":
            listing = list_npz(source, number, allow=allow, max_pixels=spec.max_pixels)
        case "synthetic":
            listing = _list_synthetic(source, number)
    entries = listing.entries
    if not entries:
        raise InvalidInput(f"sources.{number}.path", f"no images in {source.path}")
    return replace(listing, entries=replace(entries, labels=_rename(entries.labels, source, number)))


def _list_synthetic(source: Source, number: int) -> Listing:
    tissue = source.synthetic or SyntheticTissue.model_validate({})
    labels, slides = synthetic.layout(tissue)
    first_test = tissue.slides - tissue.test_slides
    entries = Entries.of(
        Entry(
            key=f"{label}/{index:06d}",
            role=Role.TEST if slide >= first_test else source.role_or_pool,
            label=label,
            group=f"slide-{slide:03d}",
            source=number,
        )
        for index, (label, slide) in enumerate(zip(labels, slides, strict=True))
    )

    def pictures(start: int) -> Iterator[Picture]:
        return (TissuePicture(tissue, index) for index in range(start, tissue.patches))

    return Listing(entries, pictures)


def _rename(labels: Words, source: Source, number: int) -> Words:
    for name in source.labels:
        if name not in labels.words:
            shown = ", ".join(sorted(labels.words)[:20]) or "there are none"
            raise InvalidInput(f"sources.{number}.labels", f"no sample has the label {name!r}; labels: {shown}")
    renamed = labels.renamed([source.labels.get(word, word) for word in labels.words])
    if len(renamed.words) > MOST_LABELS:
        field, what = ("columns.label", "column") if source.kind == "manifest" else ("path", "folder")
        reason = f"{len(renamed.words)} different labels, and at most {MOST_LABELS} are taken; is it the right {what}?"
        raise InvalidInput(f"sources.{number}.{field}", reason)
    if NO_LABEL in renamed.words:
        reason = (
            f"{NO_LABEL!r} stands for patches without one; give it another name here, {{{NO_LABEL!r}: unknown}} say"
        )
        raise InvalidInput(f"sources.{number}.labels", reason)
    return renamed
