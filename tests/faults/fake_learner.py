"""Takes the place of a vLLM server or of a learner rank; each has a child that leads its own process group.

FAKE says what a server does: `dies` with words, `stays` without ever answering and deaf to SIGTERM, `serves`
/health, `serves-on` deaf to SIGTERM, or `talks` at length before. It ends with words and code 3 when FOLDER/end-PORT is
there. A rank writes each SIGTERM to FOLDER/rank-N and leaves with 75; it leaves with 5 when FOLDER/go is there, with 4
when FOLDER/fault is. Asked for its NCCL, as a server's Python may be, it does not answer.
"""

import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

FOR_EVER_S = 600
RANK_STOPPED = 75
RANK_DONE = 5
RANK_FAULT = 4
SERVER_END = 3
LINES = 200_000


def have_a_child():
    subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({FOR_EVER_S})"], start_new_session=True)


def line(number):
    """50 bytes with its end, so that all of them are 10 MB."""
    return f"{number:06d} of the lines that nobody reads at once ..."


class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *words):
        pass


def end_when_told(sign):
    """As vLLM ends whose engine has died."""
    while not sign.exists():
        time.sleep(0.1)
    print("the engine has died", flush=True)
    os._exit(SERVER_END)


def serve(port, folder):
    kind = os.environ["FAKE"]
    print(f"a server that {kind} at {port}", flush=True)
    if kind == "dies":
        sys.exit("no memory for the cache")
    have_a_child()
    threading.Thread(target=end_when_told, args=[folder / f"end-{port}"], daemon=True).start()
    if kind in ("stays", "serves-on"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if kind == "stays":
        time.sleep(FOR_EVER_S)
    if kind == "talks":
        for number in range(LINES):
            print(line(number), file=sys.stderr if number % 2 else sys.stdout, flush=True)
        print("ready", flush=True)
    http.server.HTTPServer(("127.0.0.1", port), Health).serve_forever()


def learn(folder):
    notes = folder / f"rank-{os.environ['RANK']}"

    def note(number, frame):
        with notes.open("a") as file:
            file.write("SIGTERM\n")
        time.sleep(1)  # a second signal would be noted too
        sys.exit(RANK_STOPPED)

    signal.signal(signal.SIGTERM, note)
    have_a_child()
    notes.write_text("up\n")
    while not (folder / "go").exists() and not (folder / "fault").exists():
        time.sleep(0.1)
    sys.exit(RANK_DONE if (folder / "go").exists() else RANK_FAULT)


if __name__ == "__main__":
    if "RANK" in os.environ:
        learn(Path(os.environ["FOLDER"]))
    elif "-c" in sys.argv:
        time.sleep(FOR_EVER_S)
    else:
        serve(int(sys.argv[sys.argv.index("--port") + 1]), Path(os.environ["FOLDER"]))
