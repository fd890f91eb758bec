from krea_data.rows import Result, Row
from krea_data.summary import Step, funnel


def row(number, **drops):
    results = {task: Result(drop=drop) for task, drop in drops.items()}
    return Row(id=f"a/{number:02d}", blob="", results=results)


def test_a_row_is_counted_where_it_was_dropped_first():
    rows = [
        row(1, decode=None, flat=None),
        row(2, decode="broken"),
        row(3, flat="blank", decode=None),
        row(4, flat="blank", decode="small"),  # the order of tasks counts, not that of results
        row(5, decode=None),
        row(6),
    ]
    assert funnel(rows, ("decode", "flat")) == (
        Step(
            task="decode",
            seen=5,
            kept=3,
            dropped={"broken": 1, "small": 1},
            examples={"broken": ("a/02",), "small": ("a/04",)},
            waiting=1,
        ),
        Step(task="flat", seen=2, kept=1, dropped={"blank": 1}, examples={"blank": ("a/03",)}, waiting=1),
    )


def test_examples_are_spread_and_reasons_sorted_by_size():
    rows = [row(number, decode="broken" if number % 3 else "small") for number in range(30)]
    (step,) = funnel(rows, ["decode"], examples=2)
    assert list(step.dropped.items()) == [("broken", 20), ("small", 10)]
    assert step.examples == {"broken": ("a/01", "a/16"), "small": ("a/00", "a/15")}
    assert step.seen == 30


def test_nothing_is_a_funnel_too():
    assert funnel([], ["decode"]) == (Step(task="decode", seen=0, kept=0),)
