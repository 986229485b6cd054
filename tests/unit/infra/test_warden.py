import os
import select
import signal
import subprocess
import sys

import pytest

from infra import warden
from infra.processes import announced


@pytest.fixture
def sleeper():
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def test_a_command_name_with_spaces_and_parentheses_does_not_shift_the_fields():
    stat = "7 (a ) b (c)) S 3 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1000"
    assert warden._row(stat) == (3, "S", 987654)


def test_this_process_is_alive_and_the_parent_is_found_in_the_tree(sleeper):
    me = warden.identify(os.getpid())
    assert me is not None
    assert warden.is_alive(me)
    assert warden.identify(sleeper.pid) in warden.tree(me)


def test_a_pid_with_another_start_time_is_not_the_same_process_and_is_not_signalled(sleeper):
    real = warden.identify(sleeper.pid)
    assert real is not None
    stranger = real._replace(started_ticks=real.started_ticks - 1)
    assert not warden.is_alive(stranger)
    warden.stop([(stranger, signal.SIGKILL)])
    assert warden.is_alive(real)


def test_a_zombie_counts_as_gone(sleeper):
    identity = warden.identify(sleeper.pid)
    assert identity is not None
    os.kill(sleeper.pid, signal.SIGKILL)
    assert warden.wait_gone([identity], 5) == []
    assert sleeper.returncode is None  # nobody has waited for it yet


def test_a_paused_process_is_stopped_too(sleeper):
    identity = warden.identify(sleeper.pid)
    assert identity is not None
    os.kill(sleeper.pid, signal.SIGSTOP)
    warden.stop([(identity, signal.SIGTERM)], limit_seconds=5)
    assert sleeper.wait(5) == -signal.SIGTERM


def test_a_process_that_ignores_its_signal_is_killed_at_the_limit():
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('set', flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        identity = warden.identify(process.pid)
        assert identity is not None
        warden.stop([(identity, signal.SIGTERM)], limit_seconds=0.2)
        assert process.wait(5) == -signal.SIGKILL


def test_children_go_with_their_parent():
    with subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = warden.identify(int(process.stdout.readline()))
        parent = warden.identify(process.pid)
        assert child is not None
        assert parent is not None
        warden.stop([(parent, signal.SIGKILL)])
        assert not warden.is_alive(child)


def test_a_process_announces_itself_and_does_not_keep_the_pipe():
    read_end, write_end = os.pipe()
    with subprocess.Popen(announced(("sleep", "600"), signal.SIGQUIT), stdin=write_end) as process:
        os.close(write_end)
        try:
            assert select.select([read_end], [], [], 5)[0]
            assert os.read(read_end, 100) == f"{process.pid} {int(signal.SIGQUIT)}\n".encode()
            assert select.select([read_end], [], [], 5)[0]  # the end of the pipe, which would not come if it were held
            assert os.read(read_end, 100) == b""
        finally:
            os.close(read_end)
            process.kill()
