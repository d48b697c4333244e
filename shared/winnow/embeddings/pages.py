"""The pages of a Parquet column by their own headers: what decoding takes, whatever the footer says.

A few bytes may stand for any number of values, so that neither the size of a file nor its footer bounds them. Arrow
decodes what a page's header says, and no more.
"""

import os
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

_DICTIONARY = 2
_DESCRIBED_IN = {0: (5, 2), _DICTIONARY: (7, 2), 3: (8, 4)}
"""Of each type of page that holds values: the field of its header that counts them, and where it has their encoding."""
_EACH_ITS_OWN = (0, 2, 6, 8)
"""Encodings in which no value takes another one's bytes: plain, by numbers of the dictionary's, lengths first."""
_MOST_EMPTY = 1000
"""Pages without values of one column in one row group: reading their headers takes time, and leads nowhere."""
_LONGEST_NUMBER = 16
_LARGEST_DICTIONARY = 1 << 26
_END = 0


class Page(NamedTuple):
    """`size` is in bytes, decompressed. `each`: what a value takes on average; at most, where several may share bytes.
    `is_text`: whether values are as long as they like.
    """

    size: int
    values: int
    each: int
    is_text: bool


def pages(file: BinaryIO, metadata: Any, columns: list[str]) -> Iterator[Page]:
    """The pages of these columns. Raises ValueError where they do not hold the values that the footer promises."""
    stored = [(at, _is_text(metadata.schema.column(at))) for at in leaves(metadata, columns)]
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for at, long in stored:
            yield from _chunk(file, group.column(at), long)


def leaves(metadata: Any, columns: list[str]) -> list[int]:
    """The numbers of the stored columns that Arrow reads for these: those of a list are called NAME.list.element."""
    paths = [metadata.schema.column(at).path for at in range(metadata.num_columns)]
    wanted = set(columns)
    starts = tuple(f"{column}." for column in columns)
    return [at for at, path in enumerate(paths) if path in wanted or path.startswith(starts)]


def _is_text(stored: Any) -> bool:
    """Whether a stored column holds one value a row that is longer than a number."""
    kind, width = stored.physical_type, stored.length
    is_long = kind == "BYTE_ARRAY" or (kind == "FIXED_LEN_BYTE_ARRAY" and width > _LONGEST_NUMBER)
    return is_long and not stored.max_repetition_level


def _chunk(file: BinaryIO, chunk: Any, long: bool) -> Iterator[Page]:
    at, promised, seen, empty = chunk.data_page_offset, _positive(chunk.num_values), 0, 0
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < at:
        at = chunk.dictionary_page_offset
    while seen < promised:
        file.seek(at)
        header = _read_struct(file)
        kind, size, stored = (_positive(header.get(field)) for field in (1, 2, 3))
        at, size = file.tell() + stored, max(size, stored)  # of what is not compressed Arrow takes all that is there
        described, encoded = _DESCRIBED_IN.get(kind, (0, 0))
        values = _positive(header.get(described, {}).get(1)) if described else 0  # Arrow passes others over
        empty += not values
        if empty > _MOST_EMPTY:
            raise ValueError(f"more than {_MOST_EMPTY} pages without values")
        if not described:
            continue
        seen += 0 if kind == _DICTIONARY else values  # it may hold more than a few rows have
        if seen > promised:
            raise ValueError(f"a page holds {values} values, where its footer promises {promised} in all")
        if kind == _DICTIONARY and size > _LARGEST_DICTIONARY:
            raise ValueError(f"a dictionary takes {size} bytes, and at most {_LARGEST_DICTIONARY} are taken")
        repeats = kind == _DICTIONARY or header[described].get(encoded) not in _EACH_ITS_OWN
        yield Page(size, values, size if repeats else -(-size // max(values, 1)), long)


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
                file.seek(_require_bits(_varint(file), 31), os.SEEK_CUR)
            case 12:  # a structure
                found[field] = _read_struct(file)
            case _:
                raise ValueError("the header of a page is damaged")
    return found


def _integer(file: BinaryIO) -> int:
    number = _require_bits(_varint(file), 32)
    return number >> 1 ^ -(number & 1)


def _require_bits(number: int, bits: int) -> int:
    """So many at most: Thrift would cut more of them off."""
    if number >> bits:
        raise ValueError("the header of a page is damaged")
    return number


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
