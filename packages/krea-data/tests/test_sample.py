from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from krea_data.sample import choose, rare_weights, shares


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, 50), max_size=12), st.integers(0, 300))
def test_shares_are_fair_and_use_the_budget(sizes, budget):
    taken = shares(sizes, budget)
    assert sum(taken) == min(budget, sum(sizes))
    assert all(0 <= part <= size for part, size in zip(taken, sizes, strict=True))
    cut = [part for part, size in zip(taken, sizes, strict=True) if part < size]
    if cut:
        assert max(taken) - min(cut) <= 1  # nobody has two more than one who was cut


def paths():
    tree = {f"star/{n:04d}": ("shapes", "stars") for n in range(1_000)}
    tree |= {f"apple/{n}": ("food", "fruit", "apple") for n in range(20)}
    tree |= {f"pear/{n}": ("food", "fruit", "pear") for n in range(3)}
    return tree | {"bread/0": ("food", "bread")}


def test_the_head_is_cut_and_the_tail_is_kept():
    chosen = Counter(one.split("/")[0] for one in choose(paths(), 30))
    assert chosen == {"star": 15, "apple": 11, "pear": 3, "bread": 1}


def test_a_large_budget_takes_everything():
    assert choose(paths(), 10_000) == sorted(paths())
    assert choose(paths(), 0) == []


def test_the_choice_depends_on_the_seed_and_not_on_the_order():
    backwards = dict(reversed(paths().items()))
    assert choose(paths(), 30, seed=1) == choose(backwards, 30, seed=1)
    assert choose(paths(), 30, seed=1) != choose(paths(), 30, seed=2)


def test_negative_budgets_are_refused():
    with pytest.raises(ValueError, match="negative"):
        shares([1], -1)


def test_rare_concepts_weigh_more_within_limits():
    named = {f"star/{n}": ["star"] for n in range(100)} | {"comet/0": ["star", "comet"], "plain/0": []}
    weights = rare_weights(named, target=25, power=0.5, most=4)
    assert weights["star/0"] == pytest.approx((25 / 101) ** 0.5)
    assert weights["comet/0"] == 4  # (25 / 1) ** 0.5 is 5
    assert weights["plain/0"] == 1
    assert rare_weights(named, target=1, most=2)["star/0"] == 0.5


def test_wrong_targets_are_refused():
    with pytest.raises(ValueError, match="target 0"):
        rare_weights({}, target=0)
