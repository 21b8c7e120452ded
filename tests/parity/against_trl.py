"""Training by file mode against TRL: steps, final weights, and that the checkpoints load elsewhere."""

import json

import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import golden_train
from against_transformers import scores
from parity_common import GOLDEN, read_lines, write_lines

LOSS_WITHIN = 1e-4
NORM_WITHIN = 1e-3
WEIGHTS_WITHIN = 1e-2
TIED = GOLDEN / "models" / "tiny-tied"
REWARD = GOLDEN / "models" / "tiny-reward"


def compare(ours, report, demo_state):
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer
    data = golden_train.pairs()

    def dpo(settings, chosen):
        model = AutoModelForCausalLM.from_pretrained(TIED, dtype=torch.float32)
        return golden_train.train(DPOTrainer, DPOConfig, model, settings, Dataset.from_list(chosen),
                                  beta=settings["beta"])

    def reward(settings, chosen):
        model = AutoModelForSequenceClassification.from_pretrained(REWARD, dtype=torch.float32)
        return golden_train.train(RewardTrainer, RewardConfig, model, settings, Dataset.from_list(chosen))

    cut = data[:golden_train.DPO_CUT_PAIRS]
    policy = ["--policy", TIED, "--reference", TIED]
    folder = curve(ours, report, "DPO", ["dpo", *policy], golden_train.DPO, data, dpo)
    curve(ours, report, "DPO, cut pairs", ["dpo", *policy], golden_train.DPO_CUT, cut, dpo)
    scorer = curve(ours, report, "reward model", ["reward", "--model", REWARD], golden_train.REWARD, data, reward)
    answers(report, "the DPO checkpoint", folder)
    scores(ours, report, scorer, "the reward model's checkpoint")
    demo(ours, report, demo_state)


def curve(ours, report, name, verb, settings, data, by_trl):
    """Trains with both and compares; returns our checkpoint."""
    config = ours.path("settings.toml")
    config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
    out = ours.path("checkpoint")
    ours.run("train", *verb, "--data", write_lines(ours.path("pairs.jsonl"), data), "--out", out,
             "--config", config, "--no-shuffle")
    got = read_lines(out / "steps.jsonl")
    final, initial, recorder, logs = by_trl(settings, data)
    wanted = golden_train.steps_of(recorder, logs, {})
    equal = len(got) == len(wanted)
    report.check(f"{name}: steps", equal, f"{len(got)} against {len(wanted)}")
    if not equal:
        return out
    steps = list(zip(got, wanted))
    loss = max(abs(a["loss"] - b["loss"]) for a, b in steps)
    norm = max(abs(a["grad_norm"] - b["grad_norm"]) / b["grad_norm"] for a, b in steps)
    rate = max(abs(a["lr"] - b["lr"]) for a, b in steps)
    report.check(f"{name}: loss", loss <= LOSS_WITHIN, f"largest difference {loss:.2e}")
    report.check(f"{name}: grad_norm", norm <= NORM_WITHIN, f"largest relative difference {norm:.2e}")
    report.check(f"{name}: lr", rate <= 1e-12, f"largest difference {rate:.1e}")
    share = weights_apart(out, final, initial)
    report.check(f"{name}: weights", share <= WEIGHTS_WITHIN, f"apart by {share:.2e} of the way moved")
    return out


def weights_apart(folder, final, initial):
    got = {}
    for file in sorted(folder.glob("*.safetensors")):
        got.update(load_file(file))
    apart = moved = 0.0
    for name, tensor in got.items():
        apart += ((tensor.double() - final[name].double()) ** 2).sum().item()
        moved += ((final[name].double() - initial[name].double()) ** 2).sum().item()
    missing = set(final) - set(got) - {"lm_head.weight"}
    assert not missing, missing
    return (apart / moved) ** 0.5


def answers(report, name, folder):
    """transformers loads the folder as it is and writes with it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Say hello."}], add_generation_prompt=True, return_tensors="pt",
        return_dict=True)
    out = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1]:]
    text = tokenizer.decode(out, skip_special_tokens=True)
    report.check(f"{name} answers in transformers", len(out) > 0, repr(text))


def demo(ours, report, state):
    """The demo's own checkpoints, where it was run."""
    found = sorted(state.glob("runs/*/checkpoints/*/manifest.json"))
    folders = [path.parent for path in found if (path.parent / "config.json").exists()]
    policies = [f for f in folders if not is_scorer(f)]
    scorers = [f for f in folders if is_scorer(f)]
    if not policies or not scorers:
        report.skip("the demo's checkpoints", "there are none; run `make demo` first")
        return
    answers(report, f"the demo's {policies[-1].name}", policies[-1])
    scores(ours, report, scorers[-1], f"the demo's {scorers[-1].name}", count=12)


def is_scorer(folder):
    config = json.loads((folder / "config.json").read_text())
    return "SequenceClassification" in config["architectures"][0]


