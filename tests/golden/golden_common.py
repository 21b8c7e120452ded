"""What the parts of make_golden.py share: the folder, the models' names, JSON that reads well."""

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODELS = HERE / "models"
POLICIES = ("tiny-tied", "tiny-untied")
REWARDS = ("tiny-reward", "tiny-reward-stop")


def short(number):
    """The shortest decimal that is the same f32."""
    import numpy
    return float(str(numpy.float32(number)))


def write_json(name, value):
    """One item of the outermost list a line: git shows what changed."""
    if isinstance(value, list):
        lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in value)
        text = f"[\n{lines}\n]\n"
    else:
        text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    (HERE / name).write_text(text, encoding="utf-8")


def read_json(name):
    return json.loads((HERE / name).read_text(encoding="utf-8"))


def tokenizer_of(model):
    from transformers import AutoTokenizer
    return AutoTokenizer.from_pretrained(MODELS / model)
