"""How a case's attributes become words, which words a query may have, and what is said of those not read."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skinret_infer import Case
from skinret_infer.errors import BundleError, InputError
from skinret_infer.text import TextEncoderInput, TextRecipe, check_text
from skinret_infer.words.checklist import Checklist

SEVEN_POINT = Checklist.seven_point()

RECIPE = TextRecipe()
GIVEAWAYS = {
    "diagnosis": "melanoma (in situ)",
    "management": "excision",
    "seven_point_score": "7",
    "level_of_diagnostic_difficulty": "high",
    "group": "mel",
    "confirmed_by": "histopathology",
}


@pytest.fixture
def read(tokenizer: str) -> TextEncoderInput:
    return TextEncoderInput(tokenizer, RECIPE)


def _refusal(text: Any, recipe: TextRecipe = RECIPE) -> tuple[str, str]:
    with pytest.raises(InputError) as caught:
        check_text(text, recipe)
    return caught.value.code, str(caught.value)


# -- attributes as words --


def test_attributes_are_said_in_the_order_of_the_table_whatever_theirs() -> None:
    attributes = {"sex": "female", "streaks": "irregular", "elevation": "flat", "pigment_network": "atypical"}
    said = ["atypical pigment network", "irregular streaks", "flat lesion", "female patient"]
    assert SEVEN_POINT.phrases_of(attributes) == said
    assert SEVEN_POINT.phrases_of(dict(reversed(attributes.items()))) == said
    assert SEVEN_POINT.text_of(attributes) == ", ".join(said)


def test_every_column_has_its_own_words() -> None:
    full = {name: f"w{n}" for n, name in enumerate(SEVEN_POINT.criteria)}
    assert SEVEN_POINT.text_of(full) == (
        "w0 pigment network, w1 streaks, w2 pigmentation, w3 regression structures, w4 dots and globules, "
        "w5 blue-whitish veil, w6 vascular structures, w7 lesion, w8 location, w9 patient"
    )


def test_of_what_is_present_only_the_thing_is_said() -> None:
    assert SEVEN_POINT.text_of({"blue_whitish_veil": "present"}) == "blue-whitish veil"
    assert SEVEN_POINT.text_of({"blue_whitish_veil": "absent"}) == "absent blue-whitish veil"
    both = {"blue_whitish_veil": "present", "streaks": "present"}
    assert SEVEN_POINT.text_of(both) == "streaks, blue-whitish veil"


def test_what_is_not_known_is_not_said() -> None:
    assert SEVEN_POINT.text_of({}) == ""
    assert SEVEN_POINT.text_of({"streaks": "", "sex": None}) == ""
    assert SEVEN_POINT.text_of({"streaks": "", "sex": "male"}) == "male patient"
    assert SEVEN_POINT.text_of({"age": "63", "camera": "X"}) == ""


def test_braces_in_an_attribute_are_only_text() -> None:
    assert SEVEN_POINT.text_of({"location": "{0} {x}"}) == "{0} {x} location"


def test_nothing_that_gives_the_answer_away_is_ever_said() -> None:
    assert SEVEN_POINT.text_of(GIVEAWAYS) == ""
    assert SEVEN_POINT.text_of(GIVEAWAYS | {"streaks": "regular"}) == "regular streaks"
    assert not GIVEAWAYS.keys() & SEVEN_POINT.criteria.keys()


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.dictionaries(st.sampled_from([*SEVEN_POINT.criteria, *GIVEAWAYS, "age"]), st.just("Xq")))
def test_words_come_from_the_ten_columns_alone(attributes: dict[str, str]) -> None:
    said = SEVEN_POINT.phrases_of(attributes)
    assert said == [
        SEVEN_POINT.criteria[name].phrase.format("Xq") for name in SEVEN_POINT.criteria if name in attributes
    ]


# -- the words of a query --


@pytest.mark.parametrize("text", [None, "", " ", "\t\n  \r\n", "\u00a0\u2003"], ids=repr)
def test_no_words_mean_a_query_by_image_only(text: str | None) -> None:
    assert check_text(text, RECIPE) == ""


def test_outer_space_is_taken_off_and_the_rest_kept() -> None:
    assert check_text("  Atypical   network,\tstreaks \n", RECIPE) == "Atypical   network,\tstreaks"


@pytest.mark.parametrize("text", ["naïve café", "12 mm", "Ø", "x", "β-blocker", "меланома nevus"])
def test_text_with_latin_letters_is_taken(text: str) -> None:
    assert check_text(text, RECIPE) == text


def test_text_that_is_too_long_is_refused_with_both_numbers() -> None:
    code, message = _refusal("streaks " * 12_500)
    assert code == "text-too-long" and "99,999" in message and "2,000" in message
    assert check_text("x" * 2000, RECIPE) and check_text("  " + "x" * 2000 + "  ", RECIPE)
    assert _refusal("x" * 2001)[0] == "text-too-long"


@pytest.mark.parametrize(
    "text", ["蓝白幕 不规则条纹", "атипичная пигментная сеть", "شبكة صبغية", "12 345", "!?…", "😀", "१२३"]
)
def test_text_that_the_model_cannot_read_is_refused_with_what_was_found(text: str) -> None:
    code, message = _refusal(text)
    assert code == "text-script" and "Latin" in message and text[:5] in message


@pytest.mark.parametrize("text", [5, 1.5, b"streaks", ["streaks"], {"streaks": "regular"}, True], ids=repr)
def test_what_is_not_a_str_is_refused_by_its_type(text: Any) -> None:
    code, message = _refusal(text)
    assert code == "text-type" and type(text).__name__ in message


# -- tokens --


def test_tokens_are_padded_to_the_length_of_the_recipe(read: TextEncoderInput, tokenizer: str) -> None:
    ids, mask, warnings = read(["atypical pigment network", "irregular streaks, flat lesion"])
    assert ids.shape == mask.shape == (2, RECIPE.length) and ids.dtype == mask.dtype == np.int64
    assert warnings == [[], []]
    for row, seen in zip(ids, mask, strict=True):
        length = seen.sum()
        assert seen.tolist() == [1] * length + [0] * (RECIPE.length - length)
        assert (row[length:] == 0).all() and (row[:length] != 0).all()
    assert TextEncoderInput(tokenizer, TextRecipe(length=16))(["streaks"])[0].shape == (1, 16)


def test_a_text_gives_the_same_tokens_whatever_stands_beside_it(read: TextEncoderInput) -> None:
    texts = ["atypical pigment network", "streaks", "flat lesion, female patient", "zzz", "network " * 100]
    together = read(texts)
    for n, text in enumerate(texts):
        ids, mask, warnings = read([text])
        np.testing.assert_array_equal(ids[0], together[0][n])
        np.testing.assert_array_equal(mask[0], together[1][n])
        assert warnings[0] == together[2][n]


def test_a_text_too_long_for_the_model_gets_a_warning_that_names_what_was_not_read(
    read: TextEncoderInput,
) -> None:
    ids, mask, [[warning]] = read(["streaks " * 62 + "flat lesion, male patient"])
    assert ids.shape == (1, RECIPE.length) and mask.all()
    assert "64 tokens" in warning
    assert "'flat lesion, male patient'" in warning and "streaks" not in warning


def test_a_text_that_just_fits_gets_no_warning(read: TextEncoderInput) -> None:
    assert read(["streaks " * 62])[2] == [[]]
    assert read(["streaks " * 63])[2] != [[]]


def test_words_that_the_model_does_not_know_are_named_as_they_were_written(read: TextEncoderInput) -> None:
    [[warning]] = read(["Atypical network, ŻÓŁW streaks, 😀 lesion"])[2]
    assert "ŻÓŁW, 😀" in warning
    for known in ("Atypical", "network", "streaks", "lesion"):
        assert known not in warning


def test_unknown_words_and_words_not_read_are_both_said(read: TextEncoderInput) -> None:
    [[unknown, unread]] = read(["ŻÓŁW " + "streaks " * 70])[2]
    assert "ŻÓŁW" in unknown and "not read" in unread and "ŻÓŁW" not in unread


def test_capitals_and_accents_do_not_change_the_tokens(read: TextEncoderInput) -> None:
    ids, _, warnings = read(["atypical network", "ATYPICAL Nétwork"])
    np.testing.assert_array_equal(ids[0], ids[1])
    assert warnings == [[], []]


def test_a_full_checklist_fits_without_a_warning(read: TextEncoderInput, cases: list[Case]) -> None:
    texts = [SEVEN_POINT.text_of(case.attributes) for case in cases]
    assert all(len(case.attributes) == len(SEVEN_POINT.criteria) for case in cases)
    assert [check_text(text, RECIPE) for text in texts] == texts
    ids, mask, warnings = read(texts)
    assert warnings == [[]] * len(cases)
    assert ids.shape == (len(cases), RECIPE.length) and mask[:, -1].sum() == 0


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(text=st.text(max_size=200) | st.text("aü 蓝й0😀\u200b\0\n", max_size=200))
def test_any_str_is_refused_or_becomes_tokens(tokenizer: str, text: str) -> None:
    try:
        checked = check_text(text, RECIPE)
    except InputError as error:
        assert error.code.startswith("text-")
        return
    ids, mask, warnings = TextEncoderInput(tokenizer, RECIPE)([checked])
    assert ids.shape == mask.shape == (1, RECIPE.length) and len(warnings) == 1


@pytest.mark.parametrize("text", ["\ud800 network", "network \udcff", "\udcff"], ids=ascii)
def test_text_that_is_not_unicode_is_refused_or_read_without_it(read: TextEncoderInput, text: str) -> None:
    """A shell in another encoding leaves lone surrogates in argv."""
    try:
        checked = check_text(text, RECIPE)
    except InputError as error:
        assert error.code.startswith("text-")
        return
    assert read([checked])[0].shape == (1, RECIPE.length)
    checked.encode("utf-8")


@pytest.mark.parametrize("content", ["", "nonsense", "{}", "[]", "null", '{"model": {"type": "WordPiece"}}'])
def test_what_is_no_tokenizer_is_a_bundle_error(content: str) -> None:
    with pytest.raises(BundleError) as caught:
        TextEncoderInput(content, RECIPE)
    assert caught.value.code == "bundle-tokenizer"
