import networkx
import numpy as np
import pytest
from krea_data.concepts import audit, mentions, pagerank, tokens


@pytest.mark.parametrize("seed", range(4))
def test_pagerank_is_that_of_networkx(seed):
    draw = np.random.default_rng(seed)
    links = draw.integers(0, 60, (300, 2))
    links = links[links[:, 0] % 7 != 0]  # some nodes link nowhere
    graph = networkx.MultiDiGraph()
    graph.add_nodes_from(range(60))
    graph.add_edges_from(links.tolist())
    expected = networkx.pagerank(graph, alpha=0.85, tol=1e-14, max_iter=1_000)
    found = pagerank(links, 60)
    assert found == pytest.approx(np.array([expected[node] for node in range(60)]), abs=1e-12)
    assert found.sum() == pytest.approx(1)


def test_without_links_all_are_equal():
    assert pagerank(np.zeros((0, 2), dtype=int), 4) == pytest.approx(np.full(4, 0.25))


@pytest.mark.parametrize("links", [[[0, 3]], [[-1, 0]]])
def test_links_to_nowhere_are_refused(links):
    with pytest.raises(ValueError, match="from 0 to 2"):
        pagerank(np.array(links), 3)


def test_pagerank_that_does_not_settle_says_so():
    with pytest.raises(ValueError, match="after 1 steps"):
        pagerank(np.array([[0, 1], [1, 2]]), 3, steps=1)


def test_words_are_compared_without_case_and_accents():
    assert tokens("Pi\u00f1ata, the MAN's") == ("pinata", "the", "man", "s")


def test_whole_words_match_and_the_longest_title_wins():
    titles = ["Apple", "Red apple", "Pineapple", "Statue of Liberty", "Liberty"]
    captions = ["a RED apple and an apple", "pineapples", "the statue of liberty", "statue of", "liberty apple"]
    assert list(mentions(titles, captions)) == [
        ["Red apple", "Apple"],
        [],
        ["Statue of Liberty"],
        [],
        ["Liberty", "Apple"],
    ]


def test_an_audit_counts_captions_and_names_what_is_missing():
    found = audit({"apple": 0.2, "pear": 0.5, "rocket": 0.3}, ["an apple, an apple", "apple", "plum"])
    assert found.counts == {"apple": 2}
    assert found.missing == ("pear", "rocket")
    assert found.share == pytest.approx(1 / 3)
    assert audit({}, []).share == 1
