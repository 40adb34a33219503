"""Records the real `make demo` in a terminal of its own, as an asciicast: `recording.py FILE COMMAND...`

What is shown is what was printed, colours included. Only the pace is changed, so that people can read it: waits are cut to
a second, and what came at once comes step by step.
"""

import codecs
import json
import os
import pty
import re
import sys
import time

COLUMNS, ROWS = 90, 20
LONGEST_WAIT = 1.0
# Seconds to read what stands there before the next step begins, and for each line of it.
STEP, LINE = 0.5, 0.12


def run(command):
    """What the command prints, with the time of each piece."""
    pieces, started = [], time.monotonic()
    pid, fd = pty.fork()
    if pid == 0:
        os.environ.update(COLUMNS=str(COLUMNS), LINES=str(ROWS), TERM="xterm-256color")
        os.execvp(command[0], command)
    decode = codecs.getincrementaldecoder("utf-8")()
    try:
        while data := os.read(fd, 65536):
            pieces.append((time.monotonic() - started, decode.decode(data)))
    except OSError:
        pass  # Linux says so that the other side is closed.
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code != 0:
        sys.exit(f"{command} ended with {code}: {''.join(p[1] for p in pieces)[-2000:]}")
    return pieces


def lines(pieces):
    """Each line with the time at which it was complete."""
    rest = ""
    for at, text in pieces:
        *whole, rest = (rest + text).split("\r\n")
        for line in whole:
            yield at, line
    if rest:
        yield pieces[-1][0], rest


def steps(told):
    """Lines that belong together: a title with its command, and what followed."""
    step = []
    for at, line in told:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", line)
        if step and (re.match(r"\[ *\d+\.\ds\]|      ✔", plain) or plain.startswith("Every step")):
            yield step
            step = []
        step.append((at, line))
    yield step


def main():
    file, command = sys.argv[1], sys.argv[2:]
    events = [(0.0, "\x1b[32m$\x1b[0m ")]
    shown = 0.4
    for letter in " ".join(command[:1] + command[-1:]):
        events.append((shown, letter))
        shown += 0.05
    shown += 0.4
    events.append((shown, "\r\n"))
    before = 0.0
    for step in steps(lines(run(command))):
        shown += min(step[0][0] - before, LONGEST_WAIT)
        before = step[-1][0]
        events.append((shown, "".join(line + "\r\n" for _, line in step)))
        shown += STEP + LINE * len(step)
    with open(file, "w", encoding="utf-8") as out:
        header = {"version": 2, "width": COLUMNS, "height": ROWS, "title": "make demo", "env": {"TERM": "xterm-256color"}}
        print(json.dumps(header), file=out)
        for at, text in events:
            print(json.dumps([round(at, 3), "o", text], ensure_ascii=False), file=out)
        # The end stays for a while before it begins again.
        print(json.dumps([round(shown + 4, 3), "o", ""]), file=out)


main()
