"""The pages of a Parquet column by their own headers: what decoding takes, whatever the footer says.

A few bytes may stand for any number of values, so that neither the size of a file nor its footer bounds them. Arrow
decodes what a page's header says, and no more.
"""

import os
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

_DICTIONARY = 2
_COUNTED_IN = {0: 5, _DICTIONARY: 7, 3: 8}
"""Of each type of page that holds values, the field of its header that counts them."""
_END = 0


class Page(NamedTuple):
    """`size` is in bytes, decompressed."""

    size: int
    values: int


def pages(file: BinaryIO, metadata: Any, columns: list[str]) -> Iterator[Page]:
    """The pages of these columns. Raises ValueError where they do not hold the values that the footer promises."""
    stored = leaves(metadata, columns)
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for at in stored:
            yield from _chunk(file, group.column(at))


def leaves(metadata: Any, columns: list[str]) -> list[int]:
    """The numbers of the stored columns that these are made of: those of a list are called NAME.list.element."""
    paths = [metadata.schema.column(at).path for at in range(metadata.num_columns)]
    wanted = set(columns)
    starts = tuple(f"{column}." for column in columns)
    return [at for at, path in enumerate(paths) if path in wanted or path.startswith(starts)]


def _chunk(file: BinaryIO, chunk: Any) -> Iterator[Page]:
    at, promised, seen = chunk.data_page_offset, _positive(chunk.num_values), 0
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < at:
        at = chunk.dictionary_page_offset
    while seen < promised:
        file.seek(at)
        header = _read_struct(file)
        kind, size, stored = (_positive(header.get(field)) for field in (1, 2, 3))
        at = file.tell() + stored
        if kind not in _COUNTED_IN:
            continue  # Arrow passes it over
        values = _positive(header.get(_COUNTED_IN[kind], {}).get(1))
        seen += 0 if kind == _DICTIONARY else values
        if max(seen, values) > promised:
            raise ValueError(f"a page holds {values} values, where its footer promises {promised} in all")
        yield Page(size, values)


def _positive(number: int | None) -> int:
    if number is None or number < 0:
        raise ValueError("the header of a page, or what the footer says of it, is damaged")
    return number


def _read_struct(file: BinaryIO) -> dict[int, Any]:
    """Thrift's compact encoding, as far as headers of pages use it. Fields of types that none of them has are refused,
    or passed over as Thrift does, so that both read the same.
    """
    found: dict[int, Any] = {}
    field = 0
    while (kind := (head := _byte(file)) & 15) != _END:
        field = field + (head >> 4) if head >> 4 else _integer(file)
        if not 0 <= field < 1 << 15:
            raise ValueError("the header of a page is damaged")
        match kind:
            case 1 | 2:  # a boolean is its own type
                pass
            case 5:  # 32 bits
                found[field] = _integer(file)
            case 6:  # 64 bits
                _varint(file)
            case 8:  # bytes
                file.seek(_varint(file), os.SEEK_CUR)
            case 12:  # a structure
                found[field] = _read_struct(file)
            case _:
                raise ValueError("the header of a page is damaged")
    return found


def _integer(file: BinaryIO) -> int:
    """32 bits at most: Thrift would cut more of them off."""
    number = _varint(file)
    if number >= 1 << 32:
        raise ValueError("the header of a page is damaged")
    return number >> 1 ^ -(number & 1)


def _varint(file: BinaryIO) -> int:
    number = 0
    for shift in range(0, 70, 7):
        byte = _byte(file)
        number |= (byte & 127) << shift
        if byte < 128:
            return number
    raise ValueError("the header of a page is damaged")


def _byte(file: BinaryIO) -> int:
    read = file.read(1)
    if not read:
        raise ValueError("its pages end before they hold what the footer promises")
    return read[0]
