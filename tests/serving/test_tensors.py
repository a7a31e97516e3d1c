"""The codec of tensors: what is written is read back, and whatever comes in is read or refused."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.protocols.tensors import (
    OutputTensor,
    RequestedOutput,
    TensorSpec,
    pack_bytes,
    read_input,
    read_requested_outputs,
    split_body,
    unpack_bytes,
    write_response,
)
from serving.service import BadRequest, TooLarge

PHOTOS = TensorSpec("image", "BYTES", (-1,))
PIXELS = TensorSpec("pixels", "UINT8", (-1, 2, 2, 3))
LIMIT = 4
NOTHING = b""


def entry(spec: TensorSpec, count: Any, **rest: Any) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": [count, *spec.shape[1:]], **rest}


def read(inputs: Any, binary: bytes = b"") -> tuple[str, list[bytes] | npt.NDArray[np.uint8]]:
    return read_input(inputs, binary, [PHOTOS, PIXELS], LIMIT)


photos = st.lists(st.binary(max_size=40), min_size=1, max_size=LIMIT)
pixels = st.integers(1, LIMIT).flatmap(lambda n: st.binary(min_size=12 * n, max_size=12 * n))


@given(photos)
@settings(max_examples=50, deadline=None)
def test_bytes_are_read_back(elements: list[bytes]) -> None:
    packed = pack_bytes(elements)
    assert len(packed) == sum(4 + len(element) for element in elements)
    assert unpack_bytes(packed, len(elements)) == elements
    size = {"binary_data_size": len(packed)}
    assert read([entry(PHOTOS, len(elements), parameters=size)], packed) == ("image", elements)
    data = [base64.b64encode(element).decode() for element in elements]
    assert read([entry(PHOTOS, len(elements), data=data)]) == ("image", elements)


@given(pixels)
@settings(max_examples=50, deadline=None)
def test_numbers_are_read_back(content: bytes) -> None:
    expected = np.frombuffer(content, np.uint8).reshape(-1, 2, 2, 3)
    count = len(expected)
    size = {"binary_data_size": len(content)}
    for name, found in (
        read([entry(PIXELS, count, parameters=size)], content),
        read([entry(PIXELS, count, data=expected.tolist())]),
        read([entry(PIXELS, count, data=list(content))]),
    ):
        assert name == "pixels"
        assert isinstance(found, np.ndarray)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, expected)


def test_little_endian_lengths() -> None:
    assert pack_bytes([b"ab", b""]) == b"\x02\x00\x00\x00ab\x00\x00\x00\x00"


@pytest.mark.parametrize(
    ("inputs", "binary", "message"),
    [
        (None, b"", "inputs must be a list of exactly one tensor: image or pixels"),
        ([], b"", "inputs must be a list of exactly one tensor: image or pixels"),
        ([1], b"", "inputs must be a list of exactly one tensor: image or pixels"),
        ([{}, {}], b"", "inputs must be a list of exactly one tensor: image or pixels"),
        ([{}], b"", "there is no input null, required is image or pixels"),
        ([{"name": ["image"]}], b"", "there is no input a list, required is image or pixels"),
        ([{"name": "image", "datatype": "FP32"}], b"", 'datatype of image is "FP32", required is BYTES'),
        ([entry(PHOTOS, 1)], b"", "image must have either data or the parameter binary_data_size"),
        (
            [entry(PHOTOS, 1, data=[""], parameters={"binary_data_size": 0})],
            b"",
            "image must have either data or the parameter binary_data_size",
        ),
        ([entry(PHOTOS, 1, data=[], parameters=[])], b"", "parameters of image are a list, required is an object"),
        (
            [entry(PHOTOS, 1, data=[""])],
            b"abc",
            "3 bytes follow the JSON, which no input declares with binary_data_size",
        ),
        ([entry(PHOTOS, 2, data=[""])], b"", "data of image has 1 elements, its shape [2] needs 2"),
        ([entry(PHOTOS, 1, data="")], b"", 'data of image is "", required is a list'),
        ([entry(PHOTOS, 1, data=[1])], b"", "image 0 is 1, required is a string of base64"),
        ([entry(PHOTOS, 1, data=["a"])], b"", None),
        (
            [entry(PHOTOS, 1, parameters={"binary_data_size": 5})],
            b"abcd",
            "binary_data_size of image is 5, but 4 bytes follow the JSON",
        ),
        (
            [entry(PHOTOS, 1, parameters={"binary_data_size": -1})],
            b"abcd",
            "binary_data_size of image is -1, but 4 bytes follow the JSON",
        ),
        (
            [entry(PHOTOS, 1, parameters={"binary_data_size": True})],
            b"a",
            "binary_data_size of image is true, but 1 bytes follow the JSON",
        ),
        ([entry(PHOTOS, 1, parameters={"binary_data_size": 3})], b"\0\0\0", "the bytes end before element 0 of 1"),
        (
            [entry(PHOTOS, 1, parameters={"binary_data_size": 6})],
            b"\xff\xff\xff\xffab",
            "element 0 has 4294967295 bytes, of which 2 are there",
        ),
        (
            [entry(PHOTOS, 1, parameters={"binary_data_size": 5})],
            b"\0\0\0\0a",
            "1 bytes follow the last of 1 elements",
        ),
        (
            [entry(PIXELS, 1, parameters={"binary_data_size": 11})],
            b"a" * 11,
            "pixels has 11 bytes, its shape [1, 2, 2, 3] needs 12",
        ),
        ([entry(PIXELS, 1, data=[0] * 11)], b"", "data of pixels has 11 elements, its shape [1, 2, 2, 3] needs 12"),
        ([entry(PIXELS, 1, data=[])], b"", "data of pixels has 0 elements, its shape [1, 2, 2, 3] needs 12"),
        ([entry(PIXELS, 1, data=[0] * 11 + [256])], b"", "data of pixels must be whole numbers from 0 to 255"),
        ([entry(PIXELS, 1, data=[0] * 11 + [-1])], b"", "data of pixels must be whole numbers from 0 to 255"),
        ([entry(PIXELS, 1, data=[0] * 11 + [1.0])], b"", "data of pixels must be whole numbers from 0 to 255"),
        ([entry(PIXELS, 1, data=[0] * 11 + [True])], b"", "data of pixels must be whole numbers from 0 to 255"),
        ([entry(PIXELS, 1, data=[0] * 11 + ["x"])], b"", "data of pixels must be whole numbers from 0 to 255"),
        ([entry(PIXELS, 1, data=[0] * 11 + [10**4000])], b"", "data of pixels must be whole numbers from 0 to 255"),
        (
            [entry(PIXELS, 1, data=[[[[0] * 3] * 2, [[0] * 3]]])],
            b"",
            "data of pixels is not nested as its shape [1, 2, 2, 3] says",
        ),
        (
            [entry(PIXELS, 1, data=[[[[0] * 4] * 2, [[0] * 2] * 2]])],
            b"",
            "data of pixels is not nested as its shape [1, 2, 2, 3] says",
        ),
        ([entry(PIXELS, 1, data=[[[0, 0]]] * 12)], b"", "data of pixels is not nested as its shape [1, 2, 2, 3] says"),
    ],
)
def test_malformed_inputs(inputs: Any, binary: bytes, message: str | None) -> None:
    with pytest.raises(BadRequest) as refused:
        read(inputs, binary)
    if message is None:
        assert refused.value.detail.startswith("image 0 is not base64: ")
    else:
        assert refused.value.detail == message


@pytest.mark.parametrize(
    "shape",
    [None, [], [0], [-1], [1.0], [True], ["1"], [[1]], [1, 1], {}, 1, [float("inf")], [-(10**4000)]],
)
def test_wrong_shapes(shape: Any) -> None:
    with pytest.raises(BadRequest) as refused:
        read([{**entry(PHOTOS, 1, data=[""]), "shape": shape}])
    assert refused.value.detail == "shape of image must be [n], n being 1 or more"


@pytest.mark.parametrize(
    "shape", [[1, 2, 2], [1, 2, 2, 4], [1, 2, 2, 3, 1], [1, 3, 2, 2], [2, 1, 2, 3], [1, -2, -2, 3], [1, 2.0, 2, 3]]
)
def test_wrong_shapes_of_pixels(shape: list[Any]) -> None:
    with pytest.raises(BadRequest) as refused:
        read([{**entry(PIXELS, 1, data=[0] * 12), "shape": shape}])
    assert refused.value.detail == "shape of pixels must be [n, 2, 2, 3], n being 1 or more"


@pytest.mark.parametrize(("count", "text"), [(5, "5"), (2**63, str(2**63)), (10**4000, "1" + "0" * 59 + "...")])
def test_too_many(count: int, text: str) -> None:
    for spec in (PHOTOS, PIXELS):
        with pytest.raises(TooLarge) as refused:
            read([entry(spec, count, data=["not looked at"])])
        assert refused.value.detail == f"{text} items; a request may have at most 4"


def test_split() -> None:
    assert split_body(b'{"a":1}', None) == (b'{"a":1}', NOTHING)
    assert split_body(b'{"a":1}xyz', "7") == (b'{"a":1}', b"xyz")
    assert split_body(b"", "0") == (b"", NOTHING)


@pytest.mark.parametrize("header", ["", "-1", "1.0", "x", "٣", "9" * 5000, "+1", " 1"])
def test_a_length_that_is_no_number(header: str) -> None:
    with pytest.raises(BadRequest, match=r"^Inference-Header-Content-Length is .*, required is a number of bytes"):
        split_body(b"{}", header)


def test_a_length_beyond_the_body() -> None:
    with pytest.raises(BadRequest) as refused:
        split_body(b"{}", "3")
    assert refused.value.detail == "Inference-Header-Content-Length is 3, but the body has 2 bytes"


OFFERED = [TensorSpec("probabilities", "FP32", (-1, 5)), TensorSpec("label", "BYTES", (-1,))]


def wanted(outputs: Any, binary: bool = False) -> list[RequestedOutput]:
    return read_requested_outputs(outputs, OFFERED, "probabilities", binary)


@pytest.mark.parametrize("binary", [False, True])
def test_wanted_outputs(binary: bool) -> None:
    assert (
        wanted(None, binary)
        == wanted([], binary)
        == [RequestedOutput("probabilities", binary), RequestedOutput("label", binary)]
    )
    outputs = [
        {"name": "label", "parameters": {"binary_data": not binary}},
        {"name": "probabilities", "parameters": {"classification": 3}},
    ]
    assert wanted(outputs, binary) == [
        RequestedOutput("label", not binary),
        RequestedOutput("probabilities", binary, 3),
    ]
    assert wanted([{"name": "label", "parameters": None}], binary) == [RequestedOutput("label", binary)]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({}, "outputs must be a list of objects"),
        ([1], "outputs must be a list of objects"),
        ([{}], "output null is unknown or there twice, required is each at most once: probabilities, label"),
        (
            [{"name": "label"}] * 2,
            'output "label" is unknown or there twice, required is each at most once: probabilities, label',
        ),
        (
            [{"name": []}],
            "output a list is unknown or there twice, required is each at most once: probabilities, label",
        ),
        ([{"name": "label", "parameters": 1}], "parameters of label are 1, required is an object"),
        ([{"name": "label", "parameters": {"binary_data": 1}}], "binary_data is 1, required is true or false"),
        (
            [{"name": "label", "parameters": {"classification": 1}}],
            "classification of label is 1; it is a number of classes, for probabilities only",
        ),
        (
            [{"name": "probabilities", "parameters": {"classification": -1}}],
            "classification of probabilities is -1; it is a number of classes, for probabilities only",
        ),
        (
            [{"name": "probabilities", "parameters": {"classification": True}}],
            "classification of probabilities is true; it is a number of classes, for probabilities only",
        ),
    ],
)
def test_malformed_outputs(outputs: Any, message: str) -> None:
    with pytest.raises(BadRequest) as refused:
        wanted(outputs)
    assert refused.value.detail == message


def test_writing() -> None:
    numbers = OutputTensor("a", np.array([[1, 0.1], [2, 3]], np.float32), (2, 2), False)
    body, length = write_response({"id": "\ud800"}, [numbers, OutputTensor("b", ["é", "\udcff"], (2,), False)])
    assert length is None
    assert json.loads(body) == {
        "id": "?",
        "outputs": [
            {"name": "a", "datatype": "FP32", "shape": [2, 2], "data": [1.0, float(np.float32(0.1)), 2.0, 3.0]},
            {"name": "b", "datatype": "BYTES", "shape": [2], "data": ["é", "?"]},
        ],
    }


def test_writing_bytes() -> None:
    """Each output as it wants; what UTF-8 cannot hold is the byte that it stands for, or a question mark."""
    outputs = [
        OutputTensor("a", np.array([[1, 0.1]], ">f4"), (1, 2), True),
        OutputTensor("b", ["x"], (1,), False),
        OutputTensor("c", ["é", "\udcff", "\ud800"], (3,), True),
    ]
    body, length = write_response({}, outputs)
    assert length is not None
    assert json.loads(body[:length]) == {
        "outputs": [
            {"name": "a", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
            {"name": "b", "datatype": "BYTES", "shape": [1], "data": ["x"]},
            {"name": "c", "datatype": "BYTES", "shape": [3], "parameters": {"binary_data_size": 16}},
        ]
    }
    assert body[length:] == struct.pack("<2f", 1, 0.1) + pack_bytes(["é".encode(), b"\xff", b"?"])


@given(st.lists(st.text(st.characters()), max_size=5), st.booleans())
@settings(max_examples=50, deadline=None)
def test_any_text_is_written(texts: list[str], binary: bool) -> None:
    body, length = write_response({}, [OutputTensor("a", texts, (len(texts),), binary)])
    if length is None:
        shown = [text.encode("utf-8", "replace").decode() for text in texts]
        assert json.loads(body.decode())["outputs"][0]["data"] == shown
    else:
        assert len(unpack_bytes(body[length:], len(texts))) == len(texts)


leaves = st.none() | st.booleans() | st.integers(-3, 400) | st.floats() | st.text(max_size=3) | st.just("YWJj")
anything = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner))
shapes = st.lists(st.integers(-1, 5), max_size=5) | st.integers(1, LIMIT).map(lambda n: [n]) | anything
some_input = st.fixed_dictionaries(
    {"name": st.sampled_from(["image", "pixels"]) | anything, "datatype": st.sampled_from(["BYTES", "UINT8"])},
    optional={
        "shape": shapes | st.integers(1, LIMIT).map(lambda n: [n, 2, 2, 3]),
        "data": st.lists(leaves, max_size=5) | st.lists(st.integers(0, 255), min_size=12, max_size=12) | anything,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 50) | anything})
        | anything,
    },
)


@given(st.lists(some_input, min_size=1, max_size=2) | anything, st.binary(max_size=50))
@settings(max_examples=80, deadline=None)
def test_any_input_is_read_or_refused(inputs: Any, binary: bytes) -> None:
    try:
        name, data = read(inputs, binary)
    except (BadRequest, TooLarge):
        return
    assert 1 <= len(data) <= LIMIT
    assert isinstance(data, list) == (name == "image")


@given(st.binary(max_size=60), st.integers(1, LIMIT))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_unpacked_or_refused(binary: bytes, count: int) -> None:
    try:
        elements = unpack_bytes(binary, count)
    except BadRequest:
        return
    assert pack_bytes(elements) == binary


@given(st.binary(max_size=20), st.none() | st.text(max_size=5) | st.integers(-1, 30).map(str))
@settings(max_examples=60, deadline=None)
def test_any_header_is_read_or_refused(body: bytes, header: str | None) -> None:
    try:
        text, binary = split_body(body, header)
    except BadRequest:
        return
    assert text + bytes(binary) == body


@given(st.lists(st.dictionaries(st.sampled_from(["name", "parameters"]), anything)) | anything)
@settings(max_examples=30, deadline=None)
def test_any_outputs_are_read_or_refused(outputs: Any) -> None:
    try:
        found = wanted(outputs)
    except BadRequest:
        return
    assert 1 <= len(found) <= 2
    assert {output.name for output in found} <= {"probabilities", "label"}
