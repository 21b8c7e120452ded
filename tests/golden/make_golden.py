"""Makes every golden file of this folder: what transformers and TRL give on tiny random models.

usage: .parity/bin/python tests/golden/make_golden.py   (or `make golden`)

One thread and fixed seeds: on the same machine type a second run gives the same files. README.md
beside this file says what each of them holds.
"""

import os
import shutil

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch  # noqa: E402

from golden_common import HERE  # noqa: E402
import golden_correlation  # noqa: E402
import golden_families  # noqa: E402
import golden_forward  # noqa: E402
import golden_lora  # noqa: E402
import golden_models  # noqa: E402
import golden_preference  # noqa: E402
import golden_sft  # noqa: E402
import golden_templates  # noqa: E402
import golden_text  # noqa: E402
import golden_train  # noqa: E402


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for part in (golden_models, golden_text, golden_templates, golden_forward, golden_families,
                 golden_correlation,
                 golden_train, golden_lora, golden_sft,
                 golden_preference):
        print(f"golden: {part.__name__}", flush=True)
        part.make()
    shutil.rmtree(HERE / "__pycache__", ignore_errors=True)


if __name__ == "__main__":
    main()
