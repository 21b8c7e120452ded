"""What the parts of the comparison share: where things lie, running ours, a table of results."""

import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct"
sys.path.insert(0, str(GOLDEN))


class Report:
    """One line a comparison; remembers whether any failed."""

    def __init__(self):
        self.failed = 0
        self.start = time.monotonic()

    def check(self, name, good, figure):
        self.failed += not good
        word = "ok    " if good else "FAILED"
        print(f"{word} {name}: {figure}  [{time.monotonic() - self.start:.0f} s]", flush=True)

    def skip(self, name, reason):
        print(f"skip   {name}: {reason}", flush=True)


class Ours:
    """Our worker's file mode, and the example that shows rendering and logits."""

    def __init__(self, profile, scratch, threads):
        target = ROOT / "target" / profile
        self.worker = target / "rlhfd-worker"
        self.inspector = target / "examples" / "inspect"
        self.scratch = scratch
        self.threads = threads
        self.count = 0

    def path(self, name):
        self.count += 1
        return self.scratch / f"{self.count:03}-{name}"

    def run(self, *arguments):
        command = [str(self.worker), *map(str, arguments), "--device", "cpu", "--threads", str(self.threads)]
        self._run(command)

    def inspect(self, verb, model, data, out):
        self._run([str(self.inspector), verb, str(model), str(data), str(out)])

    @staticmethod
    def _run(command):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"parity: {' '.join(command)}\nended with {done.returncode}:\n{done.stderr[-3000:]}")


def write_lines(path, items):
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8")
    return path


def read_lines(path):
    # Not splitlines: a text may hold other line separators.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
