"""Real ranks for tests: processes forked from one that has torch, DeepSpeed and the stages in memory already, which saves each of them seconds."""

import multiprocessing
import os
import socket
from multiprocessing import forkserver
from unittest.mock import patch

import torch

_SERVER = forkserver.ForkServer()  # a process has one, and what other tests decode with is forked from that: it has none of these in memory
_SERVER.set_forkserver_preload(["deepspeed", "training.stage_factory", "training.engine", "tests.training.toy", "tests.training.preload"])


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(target, world, *arguments):
    """Processes that run `target(rank, world, port, *arguments)`."""
    context = multiprocessing.get_context("forkserver")
    port = free_port()
    processes = [context.Process(target=_main, args=(target, rank, world, port, dict(os.environ), arguments)) for rank in range(world)]
    with patch.object(forkserver, "connect_to_new_process", _SERVER.connect_to_new_process):
        for process in processes:
            process.start()
    return processes


def run(target, world, *arguments, patience=240):
    """Runs `target` on all ranks to its end; an exit status other than 0, or one that takes longer than `patience` seconds, fails the test."""
    processes = start(target, world, *arguments)
    for process in processes:
        process.join(patience)
    for process in processes:
        process.kill()
    ended = [process.exitcode for process in processes]
    assert ended == [0] * world


def _main(target, rank, world, port, environment, arguments):
    os.environ.update(environment)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    target(rank, world, *arguments)


def leave():
    """Together: a process that is gone while another still speaks aborts it."""
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
