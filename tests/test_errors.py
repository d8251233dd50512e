"""Errors, warnings and results keep what they know through pickles, copies and processes."""

import copy
import inspect
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from skinret_infer import Case, InputError, ParityError, RuntimeUnavailable, Searcher, SkinretError, errors
from skinret_infer.errors import SkinretWarning, printable

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, SkinretError)]


class Elsewhere(SkinretError):
    """An error of another package, with a signature of its own."""

    def __init__(self, place: str) -> None:
        super().__init__("something is wrong", code="elsewhere", found=place)
        self.place = place


def raised(kind: type[SkinretError]) -> SkinretError:
    error = kind("it is wrong", code="some-code", expected="a", found="b", cure="c")
    error.add_note("This is the image of case '1'.")
    return error


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_comes_back_whole_from_a_pickle(kind: type[SkinretError], protocol: int) -> None:
    error = raised(kind)
    for again in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error), copy.deepcopy(error)):  # noqa: S301
        assert (
            type(again) is kind
            and str(again) == str(error) == "it is wrong; expected a; found b. To cure it: c."
        )
        facts = (again.wrong, again.code, again.expected, again.found, again.cure, again.exit_code)
        assert facts == ("it is wrong", "some-code", "a", "b", "c", kind.exit_code)
        assert again.__notes__ == ["This is the image of case '1'."]


def test_an_error_of_another_signature_comes_back_whole() -> None:
    again = pickle.loads(pickle.dumps(Elsewhere("here")))  # noqa: S301
    assert (type(again), again.place, again.code, again.found) == (Elsewhere, "here", "elsewhere", "here")


def test_the_exit_codes_are_those_of_the_kinds() -> None:
    assert (InputError.exit_code, ParityError.exit_code, RuntimeUnavailable.exit_code) == (1, 3, 4)


def _fail(number: int) -> Case:
    return Case("", b"") if number else Case("1", b"x", attributes={"a": 1})


def test_a_process_pool_tells_the_cause() -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        case = pool.submit(_fail, 0).result(60)
        with pytest.raises(InputError, match="a case has no id") as caught:
            pool.submit(_fail, 1).result(60)
    assert caught.value.code == "case-id" and caught.value.found == "''"
    assert case == Case("1", b"x", attributes={"a": 1})


def test_warnings_and_results_come_back_whole(searcher: Searcher, cases: list[Case]) -> None:
    remark = SkinretWarning("words that the model does not know", "words-unknown")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(remark, protocol))  # noqa: S301
        assert again == remark and again.code == "words-unknown"
    results = searcher.query(cases[0].image, "zzz irregular streaks", k=3)
    copied = pickle.loads(pickle.dumps(results))  # noqa: S301
    assert copied == results and [w.code for w in copied.warnings] == [w.code for w in results.warnings]
    assert pickle.loads(pickle.dumps(results[0].evidence(with_case=False))).case_id == results[0].case_id  # noqa: S301


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("naevus\n1  2  0.99", "naevus\\n1  2  0.99"),
        ("\x1b[2Jx", "\\x1b[2Jx"),
        ("a\rb\tc\x9b", "a\\rb\\tc\\x9b"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("a\u2028b", "a\\u2028b"),
        ("Nävus, β 皮膚", "Nävus, β 皮膚"),
        ("a\udcffb", "a\\udcffb"),
        ("a\xa0b", "a\\xa0b"),
    ],
)
def test_what_would_move_a_cursor_is_shown_as_such(text: str, shown: str) -> None:
    assert printable(text) == shown
