"""Work shared out to forked processes: each begins warm, with all that this one holds, and sends back what it found."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


def in_workers(
    count: int,  # how many processes at a time
    work: Callable[[int], Any],  # is given the worker's number; what it returns must be plain data
) -> list[Any]:
    """What `work` returned in each of the workers, in the order of their numbers."""
    fork, readers = multiprocessing.get_context("fork"), []
    for number in range(count):
        reader, writer = fork.Pipe(duplex=False)
        fork.Process(target=give, args=(work, number, writer)).start()
        writer.close()  # the worker holds the other end of it alone, so that its death is noticed
        readers.append(reader)
    try:
        return [reader.recv() for reader in readers]
    except EOFError as error:
        raise RuntimeError("a worker ended before it gave what it found; run it again with one worker") from error


def give(work: Callable[[int], Any], number: int, writer: Connection) -> None:
    writer.send(work(number))
