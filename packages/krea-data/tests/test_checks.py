import pytest
from krea_data.checks import check_name, check_row, dag_order, json_text
from krea_data.rows import Row


@pytest.mark.parametrize("name", ["a", "caption_2", "x" * 40])
def test_good_names_pass(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "A", "2a", "a-b", "a b", 'a"', "x" * 41, "\u00e4"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no name for a task"):
        check_name(name)


def test_dag_order_puts_predecessors_first() -> None:
    order = dag_order({"c": ["b", "a"], "b": ["a"], "a": [], "d": ["elsewhere"]})
    assert order.index("a") < order.index("b") < order.index("c")
    assert order.index("elsewhere") < order.index("d")
    with pytest.raises(ValueError, match=r"circle \((a -> b -> a|b -> a -> b)\)"):
        dag_order({"a": ["b"], "b": ["a"]})


def test_text_that_looks_like_nul_is_no_nul() -> None:
    assert json_text({"a": "\\u0000"}, "it") == '{"a":"\\\\u0000"}'
    for value in ({"a": ["\0"]}, {"\0": 1}, {"a": {"b": "x\0"}}):
        with pytest.raises(ValueError, match="it contains a NUL"):
            json_text(value, "it")


@pytest.mark.parametrize("row_id", ["", "a\0b", "\ud800", "x" * 1025])
def test_bad_ids_are_refused(row_id: str) -> None:
    with pytest.raises(ValueError, match="row id"):
        check_row(Row(id=row_id, blob="0"))


def test_a_value_that_contains_itself_is_refused() -> None:
    value: dict = {}
    value["again"] = value
    with pytest.raises(ValueError, match="cannot be stored as JSON"):
        json_text(value, "it")
