"""What `penstock serve` shows while it starts: one line drawn over and over on a terminal, log lines elsewhere."""
import os
import pty
import re
import signal
import subprocess
import threading

import pytest

from cluster import BIN, SMOLLM, free_port

LINE = re.compile(r"\r\x1b\[K\x1b\[\?7l(.*?)\x1b\[\?7h\r")


class Terminal:
    """Reads all that is written to a terminal."""

    def __init__(self):
        self.master, self.slave = pty.openpty()
        self.text, self.changed = "", threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        while True:
            try:
                data = os.read(self.master, 65536)
            except OSError:  # nobody has it open any more
                data = b""
            with self.changed:
                self.text += data.decode(errors="replace")
                self.changed.notify_all()
            if not data:
                return

    def wait_for(self, pattern):
        with self.changed:
            assert self.changed.wait_for(lambda: re.search(pattern, self.text), 60), self.text[-4000:]
            return re.search(pattern, self.text)


@pytest.fixture
def terminal():
    terminal = Terminal()
    yield terminal
    os.close(terminal.master)


def test_one_line_until_ready(terminal):
    process = subprocess.Popen(
        [BIN / "penstock", "serve", SMOLLM, "--port", str(free_port()), "--grpc-port", "0"], stdout=terminal.slave,
        stderr=terminal.slave)
    os.close(terminal.slave)
    try:
        # Stopped as soon as it is there, the worker isn't ready before something is drawn.
        worker = int(terminal.wait_for(r'msg="started" process=worker-0 pid=(\d+)')[1])
        os.kill(worker, signal.SIGSTOP)
        terminal.wait_for(LINE.pattern)
        os.kill(worker, signal.SIGCONT)
        terminal.wait_for("Ready: ")
        os.kill(worker, signal.SIGKILL)
        terminal.wait_for(r'(?s)router msg="ready".* router msg="ready"')
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        terminal.wait_for('msg="ended" process=worker-0')
    finally:
        process.kill()
    drawn = list(LINE.finditer(terminal.text))
    assert any("rank 0" in line[1] for line in drawn) and not any("\r" in line[1] for line in drawn), drawn
    # What is drawn last is taken off before Ready, and nothing is drawn after it.
    assert "\r\x1b[K" in terminal.text[drawn[-1].end():terminal.text.index("Ready: ")]
    assert not re.search(r"percent=\d\d? ", terminal.text)


def test_log_lines_elsewhere(cluster):
    log = cluster.log()
    assert "\x1b" not in log and "\r" not in log
    assert re.search(r'msg="weights loaded" percent=(2|3)\d ', log) and 'msg="weights loaded" percent=100' in log
