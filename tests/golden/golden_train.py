"""Training curves of the tiny models by TRL: DPO and Bradley-Terry, without shuffling."""

import json
import random
import shutil
import tempfile

import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch.utils.data import SequentialSampler
from transformers import (AutoModelForCausalLM, AutoModelForSequenceClassification, PrinterCallback,
                          TrainerCallback)

from golden_common import HERE, MODELS, short, tokenizer_of, write_json

PAIRS = 24
COMMON = {
    "learning_rate": 2e-4, "schedule": "cosine", "warmup_ratio": 0.1, "epochs": 5, "batch_pairs": 6,
    "micro_batch_pairs": 2, "max_grad_norm": 1.0, "weight_decay": 0.1, "adam_beta1": 0.9,
    "adam_beta2": 0.999, "adam_epsilon": 1e-8, "max_length": 256, "overlong": "drop",
}
DPO = {"loss": "sigmoid", "beta": 0.1, "label_smoothing": 0.0, **COMMON}
REWARD = {**COMMON, "max_grad_norm": 5.0}
# The second curve: pairs cut at max_length, no warm-up, a linear schedule, 7 pairs in steps of 4, so
# that the last step of an epoch is short (of whole micro-batches: TRL takes the mean of their means).
DPO_CUT = {**DPO, "learning_rate": 3e-4, "schedule": "linear", "warmup_ratio": 0.0, "epochs": 3,
           "batch_pairs": 4, "micro_batch_pairs": 1, "max_length": 48, "overlong": "truncate"}
DPO_CUT_PAIRS = 7
# A reward model with a margin column and the centring term (TRL's center_rewards_coefficient).
REWARD_MARGIN = {**REWARD, "epochs": 3, "centring": 0.05}


def pairs():
    """Pairs of unequal lengths; a chosen answer is polite and ends, a rejected one rambles."""
    source = random.Random(3)
    things = ["the fox", "a lamp", "42 boats", "the river", "an apple", "the night", "a story", "stones"]
    out = []
    for index in range(PAIRS):
        thing, other = source.sample(things, 2)
        prompt = source.choice([f"Tell me about {thing}.", f"Where is {thing}?",
                                f"Write a list of {other} and {thing}, please, as short as you can."])
        messages = [{"role": "user", "content": prompt}]
        if index % 5 == 0:
            messages.insert(0, {"role": "system", "content": "A good answer is short."})
        if index % 7 == 0:
            messages += [{"role": "assistant", "content": f"About {other}?"},
                         {"role": "user", "content": "Yes, é."}]
        chosen = source.choice([f"{thing.capitalize()} is kind and true.", "It waits for the tide.",
                                f"Please see {thing}, then {other}."])
        rejected = " ".join(source.choice(things) for _ in range(source.randint(1, 9))) + "!?"
        out.append({"chosen": messages + [{"role": "assistant", "content": chosen}],
                    "rejected": messages + [{"role": "assistant", "content": rejected}]})
    return out


def split_pair(tokenizer, pair):
    """Prompt, chosen and rejected ids as TRL splits them."""
    prompt = tokenizer.apply_chat_template(
        pair["chosen"][:-1], add_generation_prompt=True)["input_ids"]
    sides = []
    for side in ("chosen", "rejected"):
        ids = tokenizer.apply_chat_template(pair[side])["input_ids"]
        assert ids[:len(prompt)] == prompt
        sides.append(ids[len(prompt):])
    return prompt, *sides


class Recorder(TrainerCallback):
    """Each step's loss in full digits, and the rate that the step applies."""

    def __init__(self):
        self.micro, self.losses, self.rates = [], [], []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **_):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_step_end(self, args, state, control, **_):
        self.losses.append(sum(self.micro) / len(self.micro))
        self.micro.clear()


def recording(trainer_class, recorder):
    class Trainer(trainer_class):
        def _get_train_sampler(self, *_):
            return SequentialSampler(self.train_dataset)

        def compute_loss(self, *arguments, **named):
            result = super().compute_loss(*arguments, **named)
            loss = result[0] if isinstance(result, tuple) else result
            recorder.micro.append(loss.item())
            return result

    return Trainer


def arguments(config_class, settings, out, **more):
    return config_class(
        output_dir=out, learning_rate=settings["learning_rate"], lr_scheduler_type=settings["schedule"],
        warmup_steps=settings["warmup_ratio"], num_train_epochs=settings["epochs"],
        per_device_train_batch_size=settings["micro_batch_pairs"],
        gradient_accumulation_steps=settings["batch_pairs"] // settings["micro_batch_pairs"],
        max_grad_norm=settings["max_grad_norm"], weight_decay=settings["weight_decay"],
        adam_beta1=settings["adam_beta1"], adam_beta2=settings["adam_beta2"],
        adam_epsilon=settings["adam_epsilon"], max_length=settings["max_length"], logging_steps=1,
        bf16=False, fp16=False, gradient_checkpointing=False, save_strategy="no", report_to=[],
        use_cpu=True, seed=1, disable_tqdm=True, log_level="error", **more)


def train(trainer_class, config_class, model, settings, data, **more):
    out = tempfile.mkdtemp(prefix="rlhfd-golden-")
    recorder = Recorder()
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = recording(trainer_class, recorder)(
        model=model, args=arguments(config_class, settings, out, **more), train_dataset=data,
        processing_class=tokenizer_of(settings_model(model)), callbacks=[recorder])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    shutil.rmtree(out, ignore_errors=True)
    logs = [log for log in trainer.state.log_history if "grad_norm" in log]
    return trainer.model.state_dict(), initial, recorder, logs


def settings_model(model):
    return model.config._name_or_path.rsplit("/", 1)[-1]


def steps_of(recorder, logs, names):
    steps = []
    for index, (loss, rate, log) in enumerate(zip(recorder.losses, recorder.rates, logs, strict=True)):
        step = {"step": index + 1, "loss": loss, "lr": rate, "grad_norm": log["grad_norm"]}
        step.update({ours: log[theirs] for ours, theirs in names.items()})
        steps.append(step)
    return steps


DPO_NAMES = {"accuracy": "rewards/accuracies", "margin": "rewards/margins",
             "implicit_reward_chosen": "rewards/chosen", "implicit_reward_rejected": "rewards/rejected"}
REWARD_NAMES = {"accuracy": "accuracy", "margin": "margin"}


def write_curve(name, model, settings, result, names, more, count=PAIRS, data="pairs.jsonl"):
    final, initial, recorder, logs = result
    tied = {"lm_head.weight"} if model == "tiny-tied" else set()
    final = {key: value.contiguous().clone() for key, value in final.items() if key not in tied}
    moved = sum(((final[key] - initial[key]).double() ** 2).sum() for key in final) ** 0.5
    save_file(final, HERE / f"{name}_final.safetensors", metadata={"format": "pt"})
    steps = steps_of(recorder, logs, names)
    write_json(f"{name}.json", {
        "model": model, **more, "pairs": data, "pairs_used": count, "settings": settings,
        "steps": steps, "final": f"{name}_final.safetensors", "initial_to_final_norm": float(moved)})
    clipped = sum(step["grad_norm"] > settings["max_grad_norm"] for step in steps)
    print(f"golden: {name}: {len(steps)} steps, loss {steps[0]['loss']:.4f} to {steps[-1]['loss']:.4f}, "
          f"{clipped} clipped, moved {float(moved):.4f}")
    return steps


def make():
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer
    data = pairs()
    (HERE / "pairs.jsonl").write_text(
        "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in data), encoding="utf-8")

    def policy():
        return AutoModelForCausalLM.from_pretrained(MODELS / "tiny-tied", dtype=torch.float32)

    def dpo(settings, chosen):
        return train(DPOTrainer, DPOConfig, policy(), settings, Dataset.from_list(chosen),
                     beta=settings["beta"])

    more = {"reference": "tiny-tied"}
    steps = write_curve("dpo", "tiny-tied", DPO, dpo(DPO, data), DPO_NAMES, more)
    assert len(steps) == 20 and steps[0]["loss"] - min(s["loss"] for s in steps[-4:]) >= 0.05
    cut = dpo(DPO_CUT, data[:DPO_CUT_PAIRS])
    write_curve("dpo_cut", "tiny-tied", DPO_CUT, cut, DPO_NAMES, more, DPO_CUT_PAIRS)
    scorer = AutoModelForSequenceClassification.from_pretrained(MODELS / "tiny-reward", dtype=torch.float32)
    result = train(RewardTrainer, RewardConfig, scorer, REWARD, Dataset.from_list(data))
    steps = write_curve("reward", "tiny-reward", REWARD, result, REWARD_NAMES, {})
    assert len(steps) == 20 and steps[0]["loss"] - min(s["loss"] for s in steps[-4:]) >= 0.05
    make_margins(data)


def make_margins(data):
    from trl import RewardConfig, RewardTrainer
    # 0, 0.3, 0.6 and 0.9 in turn: a margin of 0 stands for a line without one.
    data = [{**pair, "margin": 0.3 * (index % 4)} for index, pair in enumerate(data)]
    (HERE / "pairs_margin.jsonl").write_text(
        "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in data), encoding="utf-8")
    scorer = AutoModelForSequenceClassification.from_pretrained(MODELS / "tiny-reward", dtype=torch.float32)
    result = train(RewardTrainer, RewardConfig, scorer, REWARD_MARGIN, Dataset.from_list(data),
                   center_rewards_coefficient=REWARD_MARGIN["centring"])
    steps = write_curve("reward_margin", "tiny-reward", REWARD_MARGIN, result, REWARD_NAMES, {},
                        data="pairs_margin.jsonl")
    assert len(steps) == 12
