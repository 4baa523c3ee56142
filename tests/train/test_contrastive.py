"""What a contrastive batch is made of."""

import pytest

from train.contrastive import draw
from train.trainer import generator_at


@pytest.mark.parametrize("neighbours", [1, 8])
def test_a_batch_holds_runs_of_neighbours_and_no_picture_twice(neighbours: int) -> None:
    index = draw(103, 32, neighbours, generator_at(0, 0))
    assert len(set(index.tolist())) == len(index) == 32 and index.min() >= 0 and index.max() < 103
    runs = index.reshape(-1, neighbours)
    assert ((runs[:, 1:] - runs[:, :-1]) % 103 == 1).all()


def test_every_picture_is_drawn() -> None:
    seen = {i for step in range(60) for i in draw(103, 32, 8, generator_at(0, step)).tolist()}
    assert seen == set(range(103))


@pytest.mark.parametrize("neighbours", [1, 8])
def test_a_small_data_set_is_one_batch(neighbours: int) -> None:
    assert sorted(draw(5, 32, neighbours, generator_at(0, 0)).tolist()) == [0, 1, 2, 3, 4]
