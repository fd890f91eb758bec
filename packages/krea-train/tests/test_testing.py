import itertools

import torch
from krea_train.testing import Squares, WordStates, pixels


def test_squares_are_a_replayable_stream():
    squares = Squares(count=4)
    first = list(itertools.islice(squares, 3))
    assert first[0].images.shape == (4, 3, 16, 16)
    assert first[0].images.dtype == torch.uint8
    again = Squares(count=4)
    again.load_state_dict({"position": 2})
    batch = next(iter(again))
    assert torch.equal(batch.images, first[2].images)
    assert batch.ids == first[2].ids
    assert again.state_dict() == squares.state_dict()


def test_ranks_share_the_batch():
    whole = next(iter(Squares(count=4)))
    parts = [next(iter(Squares(count=4, rank=rank, ranks=2))) for rank in range(2)]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert [i for part in parts for i in part.ids] == list(whole.ids)


def test_sixteen_pictures_and_captions_are_all_different():
    batch = Squares().batch(list(range(16)), [str(i) for i in range(16)])
    assert len({image.numpy().tobytes() for image in batch.images}) == 16
    assert len({row["long"] for row in batch.captions}) == 16
    assert pixels(batch, 0).min() >= -1
    assert 0 < pixels(batch, 0).max() <= 1


def test_words_have_states_of_their_own():
    cond = WordStates(taps=2, width=5)(["red left", "left", ""])
    assert cond.lengths == (2, 1, 1)
    assert cond.states.shape == (4, 2, 5)
    assert torch.equal(cond.states[1], cond.states[2])
    assert not torch.equal(cond.states[0], cond.states[3])
