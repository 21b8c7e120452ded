"""Our worker against transformers, TRL and peft, on SmolLM2-135M-Instruct and on tiny random models.

usage: .parity/bin/python tests/parity/run.py [--profile release|debug] [--demo-state DIR] [text|training]

`make parity` brings what this needs and calls it. Exit 1 if any comparison fails.
"""

import argparse
import os
import shutil
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from parity_common import ROOT, Ours, Report  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=["text", "training"])
    parser.add_argument("--profile", default="release")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--demo-state", type=Path, default=ROOT / "demo" / "state")
    arguments = parser.parse_args()

    # What the libraries say of their own future names has no part in the table.
    warnings.filterwarnings("ignore", category=FutureWarning)
    import datasets
    import torch
    import transformers
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    import against_peft
    import against_transformers
    import against_trl

    scratch = ROOT / "target" / "parity"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    report = Report()
    ours = Ours(arguments.profile, scratch, arguments.threads)
    if arguments.part in (None, "text"):
        against_transformers.compare(ours, report)
    if arguments.part in (None, "training"):
        against_trl.compare(ours, report, arguments.demo_state)
        against_peft.compare(ours, report)
    if report.failed:
        raise SystemExit(f"parity: {report.failed} comparisons failed")
    shutil.rmtree(scratch, ignore_errors=True)
    print("parity: all comparisons hold")


if __name__ == "__main__":
    main()
