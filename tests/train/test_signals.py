"""Signals: noted inside the block, and what they were behind it."""

import os
import signal
import threading

import pytest

from memtx.train.signals import ELSEWHERE, leave, stop_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_the_handlers_are_put_back(number):
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with stop_signals() as request:
        assert request.name is None
        os.kill(os.getpid(), number)
        assert request.name == signal.Signals(number).name
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before


def test_the_handlers_are_put_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), stop_signals():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_interrupt_ends_at_once():
    with pytest.raises(KeyboardInterrupt), stop_signals():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the program went on")


def test_a_second_request_to_end_is_noted_as_the_first():
    with stop_signals() as request:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.name == "SIGTERM"


def test_in_another_thread_nothing_is_noted():
    names = []

    def run() -> None:
        with stop_signals() as request:
            names.append(request.name)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert names == [None]


def test_a_program_ends_as_the_signal_would_have_ended_it():
    leave(None)
    leave("loss has not got better")
    with pytest.raises(KeyboardInterrupt):
        leave("SIGINT")
    for stop in ("SIGTERM", ELSEWHERE):
        with pytest.raises(SystemExit) as caught:
            leave(stop)
        assert caught.value.code == 143
