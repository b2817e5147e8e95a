"""What ranks leave on the board reaches the attempt that it belongs to."""

import asyncio

from panthalassa.train.board import Board, Launch
from panthalassa.train.events import Failed, Lost, Notice


def test_a_loss_that_is_told_late_is_not_one_of_the_next_attempt() -> None:
    board = Board()
    board.post([Notice("the last words of attempt 0"), Lost("rank 3 fell silent", planned=False)])
    asyncio.run(board.begin(Launch(("a",), 0.0, 1.0)))
    assert board.take() == [Notice("the last words of attempt 0")], "only what it says still counts"
    board.post([Lost("rank 0 failed", planned=False)])
    assert board.take() == [Lost("rank 0 failed", planned=False)]


def test_ranks_that_outlive_their_attempt_are_not_heard_and_told_to_stop() -> None:
    board = Board()
    for _ in range(2):
        asyncio.run(board.begin(Launch(("a",), 0.0, 1.0)))
    assert board.post([Failed("another command goes on with this run")], attempt=0)
    assert not board.post([Notice("here")], attempt=1)
    assert board.take() == [Notice("here")]


def test_a_wish_to_stop_holds_for_one_attempt() -> None:
    board = Board()
    board.stop()
    assert board.post([])
    asyncio.run(board.begin(Launch(("a",), 0.0, 1.0)))
    assert not board.post([])
