"""Text from people's data does not steer the terminal, wherever it is shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowers import cli
from flowers.config import TrainConfig
from flowers.errors import InputError
from flowers.text import plain, secret_of, several, without_secrets

ODD = ["a\x1b[31mb", "a\nb", "a\rb", "a\tb", "a\u202eb", "a\u2028b", "a\x07b", "a\x9bb", "a\ud800b"]


@given(st.text())
def test_what_is_shown_is_one_line_that_can_be_printed(text: str) -> None:
    shown = plain(text)
    assert shown.isprintable()
    assert len(shown) == len(text)
    assert plain(shown) == shown
    shown.encode()


def test_letters_stay_and_what_steers_goes() -> None:
    assert plain("Löwenzahn ☃ 花 [bold]x[/bold] <b>") == "Löwenzahn ☃ 花 [bold]x[/bold] <b>"
    assert {plain(text) for text in ODD} == {"a\ufffdb", "a\ufffd[31mb"}


def test_one_is_not_several() -> None:
    assert [several(number, "photo") for number in (0, 1, 1200)] == ["0 photos", "1 photo", "1,200 photos"]
    assert [several(number, "class", "classes") for number in (1, 2)] == ["1 class", "2 classes"]
    assert [several(number, "CPU") for number in (0.5, 1.0)] == ["0.5 CPUs", "1 CPU"]


def test_an_error_is_one_line_whatever_it_is_about() -> None:
    for odd in ODD:

        @cli.command("Fails.", TrainConfig)
        def fails(odd: str = odd, **_: object) -> None:
            raise InputError(f"--data: {odd} is wrong")

        code, text = cli.outcome(fails, "fails", [])
        assert code == 2
        assert text.isprintable()


@pytest.mark.parametrize(
    ("uri", "what"),
    [
        ("s3://key:word@bucket/photos", "a user or a password"),
        ("s3://key@bucket/photos", "a user or a password"),
        ("https://me:word@host.example/a.zip", "a user or a password"),
        ("s3://bucket/runs?secret_key=word", "the option 'secret_key'"),
        ("s3://bucket/runs?region=x&AccessKey=word", "the option 'AccessKey'"),
        ("https://host.example/a.zip?X-Amz-Signature=word&x=1", "the option 'X-Amz-Signature'"),
        ("https://host.example/a.zip?sv=1&sig=word", "the option 'sig'"),
        ("https://host.example/a.zip?access_token=word", "the option 'access_token'"),
        ("https://host.example/a.zip?x;password=word", "the option 'password'"),
    ],
)
def test_a_secret_in_an_address_is_found_and_not_shown(uri: str, what: str) -> None:
    assert secret_of(uri) == what
    for text in (without_secrets(uri), what):
        assert "word" not in text.replace("password", "")
    with pytest.raises(InputError) as caught:
        TrainConfig(data=uri)
    said = str(caught.value)
    assert said.startswith("--data: the address ")
    assert "word" not in said.replace("password", "")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/photos@2x?endpoint_override=host.example:9000&region=x&scheme=http",
        "/home/me@work/photos?token=1",
        "https://host.example/a.zip?signed=no&significant=1",
        "gs://bucket/a@b:c",
        "photos",
    ],
)
def test_other_addresses_are_no_secrets(uri: str) -> None:
    assert secret_of(uri) is None
    assert TrainConfig(data=uri).data == uri
