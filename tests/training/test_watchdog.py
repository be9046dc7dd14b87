"""A loop that hangs is noticed, once, and told where."""

import threading
import time

from t5x_lite.training.watchdog import Watchdog


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_says_where_every_thread_is_once_for_each_hang(tmp_path, capfd):
    stacks = tmp_path / "stacks_process_0.txt"
    ended = threading.Event()
    other = threading.Thread(target=ended.wait, name="other")
    other.start()

    def hang_until(count):
        wait_for(lambda: stacks.exists() and stacks.read_text().count("nothing has happened") == count)

    with Watchdog(str(tmp_path), 0.2) as watchdog:
        watchdog.alive("step 7")
        hang_until(1)
        time.sleep(0.5)  # it does not say it again
        watchdog.alive("the save of step 7")
        hang_until(2)
    ended.set()
    other.join()
    said = capfd.readouterr().err.splitlines()
    assert [line.split(" began; ")[0] for line in said] == [
        f"WARNING process 0: nothing has happened for 0.2 s, since {what}" for what in ("step 7", "the save of step 7")
    ]
    assert str(stacks) in said[0] and "STEP_TIMEOUT" in said[0]
    written = stacks.read_text()
    assert "hang_until" in written and "wait" in written and written.count("Current thread") == 2


def test_a_loop_that_goes_on_is_left_alone(tmp_path, capfd):
    with Watchdog(str(tmp_path), 5.0) as watchdog:
        for step in range(20):
            watchdog.alive(f"step {step}")
            time.sleep(0.01)
    assert capfd.readouterr().err == "" and not list(tmp_path.iterdir())


def test_a_timeout_of_zero_turns_it_off(tmp_path):
    threads = threading.active_count()
    with Watchdog(str(tmp_path), 0):
        assert threading.active_count() == threads
