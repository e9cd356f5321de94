"""Timing in rounds: each piece once a round, each first in turn."""

import pytest

from lib.timing import in_rounds


def test_each_round_times_every_piece_once_and_begins_with_another():
    calls = []
    seconds = in_rounds({name: lambda name=name: calls.append(name) for name in "abc"}, 3, warm_up=0)
    assert calls == list("abcbcacab")
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert len(in_rounds({"a": lambda: None}, 2)["a"]) == 2, "the warm-up is not counted"


def test_nothing_to_time_is_refused():
    with pytest.raises(ValueError, match="0 pieces of work in 3 rounds"):
        in_rounds({}, 3)
    with pytest.raises(ValueError, match="1 pieces of work in 3 rounds after -1"):
        in_rounds({"a": lambda: None}, 3, warm_up=-1)
