"""Adapters that our worker trained, loaded by peft: the same logits and scores as ours."""

import json

import numpy
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import golden_train
from parity_common import GOLDEN, read_lines, write_lines

WITHIN = 1e-4
MODELS = GOLDEN / "models"
IDS = [[5, 9, 17, 101, 3, 255, 64], [8], [300, 12, 12, 7]]
SETTINGS = {"learning_rate": 5e-3, "epochs": 4, "batch_pairs": 6, "warmup_ratio": 0.0, "lora_rank": 4, "lora_alpha": 8}
VARIANTS = {
    "all-linear": {"lora_targets": "all-linear"},
    "rsLoRA, named targets": {"lora_targets": ["q_proj", "mlp.up_proj"], "lora_rs": True, "lora_dropout": 0.1},
}


def compare(ours, report):
    data = write_lines(ours.path("pairs.jsonl"), golden_train.pairs())
    for name, more in VARIANTS.items():
        config = ours.path("settings.toml")
        config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in {**SETTINGS, **more}.items()))
        for base in ("tiny-tied", "tiny-untied"):
            out = ours.path("adapted")
            ours.run("train", "dpo", "--policy", MODELS / base, "--data", data, "--out", out, "--config", config)
            logits(ours, report, f"LoRA {name}, {base}", MODELS / base, out)
        out = ours.path("adapted-scorer")
        ours.run("train", "reward", "--model", MODELS / "tiny-reward", "--data", data, "--out", out, "--config", config)
        scores(ours, report, f"LoRA {name}, tiny-reward", MODELS / "tiny-reward", out)


def logits(ours, report, name, base, out):
    """peft's logits, beside and merged, against ours of the merged folder."""
    got = ours.path("logits.f32")
    ours.inspect("logits", out, write_lines(ours.path("ids.jsonl"), [{"ids": ids} for ids in IDS]), got)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    without = rows(plain)
    model = PeftModel.from_pretrained(plain, out / "adapter").eval()
    got = numpy.fromfile(got, dtype="<f4").reshape(-1, plain.config.vocab_size)
    beside = rows(model)
    merged = rows(model.merge_and_unload())
    worst = max(float(numpy.abs(got - wanted).max()) for wanted in (beside, merged))
    shows = float(numpy.abs(without - beside).max())
    report.check(f"{name}: logits", worst <= WITHIN < shows / 100,
                 f"largest difference {worst:.2e} of what the adapter changes, {shows:.2f}")


def rows(model):
    with torch.no_grad():
        return torch.cat([model(torch.tensor([ids])).logits[0] for ids in IDS]).numpy()


def scores(ours, report, name, base, out):
    from transformers import AutoTokenizer
    lines = [{"messages": pair["chosen"]} for pair in golden_train.pairs()[:12]]
    got = ours.path("scores.jsonl")
    ours.run("score", "--model", out, "--data", write_lines(ours.path("conversations.jsonl"), lines), "--out", got)
    plain = AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.float32).eval()
    model = PeftModel.from_pretrained(plain, out / "adapter").eval()
    # Ours is saved with a pad id that ends no text.
    model.config.pad_token_id = json.loads((out / "config.json").read_text())["pad_token_id"]
    tokenizer = AutoTokenizer.from_pretrained(out)
    worst = 0.0
    for line, scored in zip(lines, read_lines(got), strict=True):
        ids = tokenizer.apply_chat_template(line["messages"], return_tensors="pt", return_dict=True)["input_ids"]
        with torch.no_grad():
            worst = max(worst, abs(model(ids).logits[0, 0].item() - scored["score"]))
    report.check(f"{name}: scores", worst <= WITHIN, f"largest difference {worst:.2e}")
