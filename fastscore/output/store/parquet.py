"""Samples as a Parquet file: a column an array, a row a sample."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastscore.output.store.entries import files, length, suffix, values

Arrays = Mapping[str, NDArray[Any]]
_NOTE = "fastscore"  # the key of the note in the file's metadata


def library() -> tuple[Any, Any]:
    """Return pyarrow and pyarrow.parquet.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("the format parquet needs pyarrow", name="pyarrow") from error
    return pyarrow, pyarrow.parquet


def write(file: BytesIO, arrays: Arrays, text: bytes) -> None:
    """Write a Parquet file of one row group, and a text in its metadata.

    Images are PNG files, as structs of ``bytes`` and ``path`` that Hugging Face's datasets take for images; entries of
    other arrays are numbers or nested lists of a fixed size. Nothing is compressed.

    Raises:
        ValueError: entries of no values, or images of 2 GiB and more.
        ImportError: pyarrow is not installed.
    """
    table = table_of(arrays)
    with writer(file, table.schema) as opened:
        opened.write_table(table, row_group_size=max(1, len(table)))
        opened.add_key_value_metadata({_NOTE: text.decode()})


def read(data: bytes, described: Arrays) -> Arrays:
    """Return the arrays of a file of ``write``.

    Columns that are packed in any way are refused before they are read: little of them could make much.
    """
    arrow, parquet = library()
    file = parquet.ParquetFile(arrow.BufferReader(data))
    about = file.metadata
    columns = [about.row_group(k).column(j) for k in range(about.num_row_groups) for j in range(about.num_columns)]
    if any(_packed(column) or column.num_values > len(data) for column in columns):
        raise ValueError("its columns are packed, which those of a shard are not")
    table = file.read().combine_chunks()
    return {name: _values(table[name], x, name) for name, x in described.items()}


def writer(file: Any, schema: Any) -> Any:
    """Return pyarrow's writer to a file, such that the bytes depend on its version and the values alone."""
    _, parquet = library()
    return parquet.ParquetWriter(file, schema, compression="none", use_dictionary=False, write_statistics=False)


def table_of(arrays: Arrays) -> Any:
    """Return arrays as a table of pyarrow."""
    arrow, _ = library()
    columns = {name: _column(name, x, arrays["ids"]) for name, x in arrays.items()}
    features = {name: _feature(name, x) for name, x in arrays.items()}
    hugging_face = {"huggingface": json.dumps({"info": {"features": features}})}
    return arrow.table(columns).replace_schema_metadata(hugging_face)


def _column(name: str, x: NDArray[Any], ids: NDArray[np.int64]) -> Any:
    arrow, _ = library()
    if min(x.shape[1:], default=1) == 0:
        raise ValueError(f"parquet holds no entries without values, as {name} {x.shape} has them; take npz")
    if name != "samples" or suffix(x) != "png":
        column = arrow.array(x.reshape(-1))
        for size in reversed(x.shape[1:]):
            column = arrow.FixedSizeListArray.from_arrays(column, size)
        return column
    images = files(x)
    if images.nbytes >= 1 << 31:
        raise ValueError(f"parquet holds less than 2 GiB of images in a shard, not {images.nbytes:,} bytes; take fewer")
    ends = np.arange(len(x) + 1, dtype=np.int32) * np.int32(images.shape[1])
    contents = arrow.Array.from_buffers(arrow.binary(), len(x), [None, arrow.py_buffer(ends), arrow.py_buffer(images)])
    paths = arrow.array([f"{key:06d}.png" for key in ids.tolist()], arrow.string())
    return arrow.StructArray.from_arrays([contents, paths], ["bytes", "path"])


def _values(column: Any, like: NDArray[Any], name: str) -> NDArray[Any]:
    """Return a column as the array that it was made of."""
    column = column.combine_chunks()
    if name == "samples" and suffix(like) == "png":
        return _images(column.field("bytes"), like)
    for _ in like.shape[1:]:
        column = column.flatten()
    return column.to_numpy(zero_copy_only=False).astype(like.dtype, copy=False).reshape(like.shape)


def _images(contents: Any, like: NDArray[Any]) -> NDArray[Any]:
    """Return the images of a column of PNG files."""
    if not len(contents):
        return np.empty(like.shape, like.dtype)
    _, ends, data = contents.buffers()
    start, size = int(np.frombuffer(ends, np.int32, 1, 4 * contents.offset)[0]), length(like)
    return values(np.frombuffer(data, np.uint8, len(contents) * size, start).reshape(-1, size), like)


def _packed(column: Any) -> bool:
    """Return whether a column's values are not there one by one, by its metadata."""
    return column.compression != "UNCOMPRESSED" or any("DICTIONARY" in encoding for encoding in column.encodings)


def _feature(name: str, x: NDArray[Any]) -> dict[str, Any]:
    """Return what Hugging Face's datasets are told of an array."""
    if name == "samples" and suffix(x) == "png":
        return {"_type": "Image"}
    feature: dict[str, Any] = {"dtype": x.dtype.name, "_type": "Value"}
    for size in reversed(x.shape[1:]):
        feature = {"feature": feature, "length": size, "_type": "Sequence"}
    return feature
