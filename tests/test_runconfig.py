from __future__ import annotations

import string
from typing import Annotated, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

import runconfig
from runconfig import ConfigError, RunConfig


class Part(RunConfig):
    size: int = Field(default=1, ge=0)
    name: str = "part"
    active: bool = False


class Whole(RunConfig):
    label: str = "whole"
    ratio: float = 0.5
    bits: Literal[4, 8] = 8
    steps: tuple[Annotated[int, Field(ge=1)], ...] = (1,)
    part: Part = Part()
    maybe: Part | None = None
    parts: tuple[Part, ...] = ()
    limits: dict[str, float] = Field(default_factory=dict)


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "config.yml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refusal(*arguments, **more):
    with pytest.raises(ConfigError) as caught:
        runconfig.load(*arguments, **more)
    return str(caught.value)


def test_words_win_over_variables_and_variables_over_the_file(write):
    path = write("part: {size: 1, name: file}\nratio: 0.1\n")
    environ = {"APP_PART__SIZE": "2", "APP_RATIO": "0.2", "OTHER_RATIO": "9"}

    config = runconfig.load(Whole, path, ["part.size=3"], environ=environ, env_prefix="APP_")

    assert (config.part.size, config.ratio, config.part.name) == (3, 0.2, "file")


def test_variables_are_read_only_where_a_prefix_is_given(write):
    assert runconfig.load(Whole, write(""), environ={"RATIO": "9", "APP_RATIO": "9"}).ratio == 0.5


def test_an_empty_file_gives_the_defaults(write):
    assert runconfig.load(Whole, write("")) == Whole()


def test_a_word_can_fill_a_section_that_the_file_leaves_empty(write):
    assert runconfig.load(Whole, write("part:\n"), ["part.size=4"]).part.size == 4


def test_a_word_for_a_text_field_stays_text_whatever_yaml_makes_of_it(write):
    """YAML reads these as a date, numbers and a truth value, and nobody quotes twice in a shell."""
    for text in ("2026-11-01", "1.10", "007", "yes", "null-and-void"):
        assert runconfig.load(Whole, write(""), [f"label={text}"]).label == text


def test_a_date_in_the_file_asks_for_quotes(write):
    message = refusal(Whole, write("label: 2026-11-01"))
    assert "label: text is expected" in message
    assert "quotes" in message


def test_an_exponent_without_a_point_is_a_number(write):
    """YAML 1.1 takes 1e-4 for text; learning rates are written so."""
    assert runconfig.load(Whole, write("ratio: 1e-4")).ratio == 0.0001


@pytest.mark.parametrize("text", ["part: {size: yes}", "ratio: true", "bits: on", "steps: [1, true]"])
def test_a_truth_value_is_not_taken_for_a_number(write, text):
    assert text.partition(":")[0] in refusal(Whole, write(text))


def test_a_number_is_not_refused_where_a_truth_value_is_allowed(write):
    assert runconfig.load(Whole, write("part: {active: yes}")).part.active is True


def test_all_problems_are_reported_at_once_with_their_paths(write):
    message = refusal(Whole, write("part: {size: -1, nmae: x}\nratio: much\n"), ["bits=5"])
    assert "part.size: Input should be greater than or equal to 0, got -1" in message
    assert "part.nmae: unknown key; did you mean 'name'? allowed here: active, name, size" in message
    assert "ratio: " in message
    assert "bits (from bits=5): " in message


def test_the_variable_that_set_a_wrong_value_is_named(write):
    message = refusal(Whole, write(""), environ={"APP_PART__SIZE": "big"}, env_prefix="APP_")
    assert "part.size (from APP_PART__SIZE)" in message


@pytest.mark.parametrize("text", ["maybe: {sise: 1}", "parts: [{size: 1}, {sise: 1}]"])
def test_unknown_keys_of_optional_and_listed_sections_name_the_allowed_ones(write, text):
    assert "did you mean 'size'? allowed here: active, name, size" in refusal(Whole, write(text))


def test_a_key_that_is_there_twice_is_refused(write):
    assert "'ratio' is there twice" in refusal(Whole, write("ratio: 0.1\nlabel: x\nratio: 0.2\n"))


def test_merge_keys_still_work(write):
    text = "maybe: &base {size: 7, name: base}\npart: {<<: *base, name: own}\n"
    assert runconfig.load(Whole, write(text)).part == Part(size=7, name="own")


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("- 1\n", [], "must hold keys and values, got a list"),
        ("a: [", [], "not valid YAML"),
        ("", ["part"], "must look like key=value, got 'part'"),
        ("", ["=3"], "must look like key=value"),
        ("", ["part=["], "the value is not valid YAML"),
        ("ratio: 1", ["ratio.deep=2"], "'ratio' is a single value here"),
        ("[1]: 2", [], "a key must be a single value, got [1]"),
        ("[" * 2000, [], "nested too deeply"),
        ("", ["part=" + "[" * 2000], "the value is not valid YAML: nested too deeply"),
        ("", ["part={a: 1, a: 2}"], "'a' is there twice"),
        ("ratio: 2026-13-01", [], "does not fit its type (month must be in 1..12)"),
        ("ratio: !!bool x", [], "does not fit its type"),
        ("ratio: !!timestamp x", [], "does not fit its type"),
        ("part: {size: .inf}", [], "part.size"),
        ("ratio: .nan", [], "ratio"),
    ],
)
def test_what_cannot_be_read_is_a_clear_error(write, text, words, said):
    assert said in refusal(Whole, write(text), words)


def test_a_missing_file_and_bytes_that_are_no_text_are_clear_errors(tmp_path):
    assert "No such file" in refusal(Whole, tmp_path / "none.yml")
    (tmp_path / "bytes.yml").write_bytes(b"\xff\xfe\x00")
    assert "not valid YAML" in refusal(Whole, tmp_path / "bytes.yml")


def test_nothing_changes_after_reading():
    with pytest.raises(ValueError, match="frozen"):
        Whole().part.size = 2


names = st.text(string.ascii_letters + "_", min_size=1, max_size=12)
values = st.builds(
    Whole,
    label=st.text(max_size=20).filter(lambda text: text.isprintable()),
    ratio=st.floats(allow_nan=False, allow_infinity=False),
    bits=st.sampled_from([4, 8]),
    steps=st.lists(st.integers(1, 10**6), max_size=4).map(tuple),
    part=st.builds(Part, size=st.integers(0, 10**9), active=st.booleans(), name=names),
    maybe=st.none() | st.builds(Part),
    parts=st.lists(st.builds(Part, size=st.integers(0, 9)), max_size=2).map(tuple),
    limits=st.dictionaries(names, st.floats(-1e6, 1e6), max_size=3),
)


@given(values)
def test_what_is_dumped_is_read_back_to_the_same_values(config):
    assert Whole.model_validate(yaml.safe_load(runconfig.dump(config))) == config


@given(size=st.integers(0, 10**9), on=st.booleans(), label=names)
def test_values_given_as_words_arrive(tmp_path_factory, size, on, label):
    path = tmp_path_factory.getbasetemp() / "empty.yml"
    path.write_text("")
    words = [f"part.size={size}", f"part.active={str(on).lower()}", f"label={label}"]
    config = runconfig.load(Whole, path, words)
    assert (config.part.size, config.part.active, config.label) == (size, on, label)


@given(st.sampled_from([(), ("part",)]), names.map(str.lower))
def test_every_unknown_key_is_refused_with_its_path_and_the_allowed_ones(tmp_path_factory, section, name):
    model = Part if section else Whole
    if name in model.model_fields:
        return
    path = tmp_path_factory.getbasetemp() / "empty.yml"
    path.write_text("")
    key = ".".join([*section, name])
    message = refusal(Whole, path, [f"{key}=1"])
    assert f"{key} (from {key}=1): unknown key" in message
    assert all(field in message for field in model.model_fields)
