import pickle

import pytest
from krea_data.captions.again import Held, LostError
from krea_data.captions.asking import Answer

LOST = Answer(failed="timeout", error="no answer within 1 s", again=True)


def test_the_others_of_a_batch_are_not_asked_twice() -> None:
    held, asked = Held[Answer](), []

    def ask(keys: list[str]):
        def answers(places: list[int]) -> list[Answer]:
            asked.extend(keys[place] for place in places)
            return [LOST if keys[place] == "b" else Answer(text=keys[place]) for place in places]

        return answers

    with pytest.raises(LostError, match="1 of 4 rows"):
        held.settle([*"abcd"], ask([*"abcd"]), keep_lost=False)
    with pytest.raises(LostError, match="1 of 2 rows"):
        held.settle([*"ab"], ask([*"ab"]), keep_lost=False)
    assert held.settle(["a"], ask(["a"]), keep_lost=False) == [Answer(text="a")]
    with pytest.raises(LostError, match="timeout: no answer within 1 s"):
        held.settle(["b"], ask(["b"]), keep_lost=False)
    assert held.settle([*"cd"], ask([*"cd"]), keep_lost=False) == [Answer(text="c"), Answer(text="d")]
    assert asked == [*"abcd"]
    with pytest.raises(LostError):
        held.settle(["b"], ask(["b"]), keep_lost=False)
    assert asked == [*"abcdb"], "another attempt asks again"


def test_a_new_batch_lets_the_old_one_go() -> None:
    held = Held[Answer]()
    with pytest.raises(LostError):
        held.settle([*"ab"], lambda places: [LOST, Answer(text="old")], keep_lost=False)
    found = held.settle([*"bc"], lambda places: [Answer(text="new") for _ in places], keep_lost=False)
    assert [answer.text for answer in found] == ["new", "new"]


def test_lost_answers_are_kept_on_request_and_nothing_travels() -> None:
    held = Held[Answer]()
    assert held.settle(["a"], lambda places: [LOST], keep_lost=True) == [LOST]
    with pytest.raises(LostError):
        held.settle([*"ab"], lambda places: [LOST, LOST], keep_lost=False)
    copy = pickle.loads(pickle.dumps(held))
    assert copy.settle(["a"], lambda places: [Answer(text="x")], keep_lost=False) == [Answer(text="x")]
