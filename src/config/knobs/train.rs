//! Knobs of training: `[train]` (DPO), `[sft]`, `[reward]` (Bradley-Terry) and `[preference]`. The
//! worker's file mode reads the same rows.
//!
//! In: nothing. Out: rows.

use super::{ABOVE_ZERO, BELOW_ONE, Bound, Kind, Knob, NOT_NEGATIVE, SHARE, Section, count};

const OURS: &str = "ours";
const TORCH: &str = "torch and transformers";
const TABLE_7: &str = "paper, table 7";
const SECTION_2_1: &str = "paper, section 2.1";
const SECTION_3_1: &str = "paper, section 3.1";

const LOSS: Knob = Knob::new("loss", Kind::Word(&["sigmoid", "cdpo"]), "\"sigmoid\"")
    .doc("\"sigmoid\" (DPO) or \"cdpo\", its form with label smoothing")
    .source("paper, section 3.3: DPO");
const BETA: Knob = Knob::new("beta", ABOVE_ZERO, "0.1")
    .doc("pull towards the reference; too small: the policy drifts; too large: it hardly moves")
    .source("paper, section 3.3 (eta)");
const LABEL_SMOOTHING: Knob = Knob::new(
    "label_smoothing",
    Kind::Number { low: Bound::At(0.0), high: Bound::Past(0.5) },
    "0.0",
)
.doc("share of labels that \"cdpo\" takes to be swapped; above 0 only with that loss")
.source("paper: none (0.1 in one of its scripts)");
const SCHEDULE: Knob =
    Knob::new("schedule", Kind::Word(&["cosine", "linear", "constant"]), "\"cosine\"")
        .doc("the rate's way to 0 after warm-up")
        .source("paper, table 7 and section 2.1");
const WARMUP_RATIO: Knob = Knob::new("warmup_ratio", SHARE, "0.03")
    .doc("warm-up steps = ceil(ratio x steps); with any, the first step's rate is 0")
    .source("paper, table 7 and section 2.1 (0 in its scripts)");
const MICRO_BATCH_PAIRS: Knob = Knob::new("micro_batch_pairs", count(1, 65_536), "2")
    .unit("pairs")
    .doc("pairs computed together; bounds memory, and changes a step only in its last bits")
    .source("paper, table 7: 2 a device");
const MAX_GRAD_NORM: Knob = Knob::new("max_grad_norm", NOT_NEGATIVE, "1.0")
    .doc("gradients are scaled down to this norm; 0 leaves them as they are")
    .source(TORCH);
const LOSS_GROWTH_MAX: Knob = Knob::new("loss_growth_max", NOT_NEGATIVE, "5.0")
    .unit("times the first step's loss, or ln 2 where that is less")
    .doc(
        "a mean loss of the last five steps above this stops the training; nearer to 1 stops a rough \
          one too, 0: no such limit",
    )
    .source(OURS);
const STUCK_STEPS: Knob = Knob::new("stuck_steps", count(0, 1_000_000), "100")
    .unit("steps")
    .doc(
        "so many in a row with the loss (0.693) and the accuracy (one half) of chance, from half of \
          learning_rate on, stop the training: nothing is learnt; 0: no such limit",
    )
    .source(OURS);
const WEIGHT_DECAY: Knob = Knob::new("weight_decay", NOT_NEGATIVE, "0.0")
    .doc("decoupled; never on norms and biases")
    .source(TORCH);
const ADAM_BETA1: Knob =
    Knob::new("adam_beta1", BELOW_ONE, "0.9").doc("decay of the first moment").source(TORCH);
const ADAM_BETA2: Knob =
    Knob::new("adam_beta2", BELOW_ONE, "0.999").doc("decay of the second moment").source(TORCH);
const ADAM_EPSILON: Knob = Knob::new("adam_epsilon", ABOVE_ZERO, "1e-8")
    .doc("added to the root of the bias-corrected second moment")
    .source(TORCH);
const MAX_LENGTH: Knob = Knob::new("max_length", count(2, 1 << 22), "2048")
    .unit("tokens")
    .doc("longest side of a pair, prompt and response together")
    .source("the paper's scripts");
const MAX_PROMPT_LENGTH: Knob =
    Knob::unset("max_prompt_length", count(1, 1 << 22), "only max_length counts", "1024")
        .unit("tokens")
        .doc("pairs with a longer prompt are over-long")
        .source("the paper's scripts: 1000 and 1024");
const OVERLONG: Knob = Knob::new("overlong", Kind::Word(&["drop", "truncate"]), "\"drop\"")
    .doc(
        "an over-long pair is dropped and counted, or each side keeps its first max_length ids \
          as in TRL; pairs that bring the reference's log-probs, as those of the loop do, are \
          dropped in any case",
    )
    .source("ours: truncation can leave two equal sides");
const CHECKPOINTING: Knob = Knob::new("activation_checkpointing", Kind::Switch, "false")
    .doc("compute each block again in the backward pass: far less memory, a third more time")
    .source(OURS);
const TRAINABLE_LAYERS: Knob =
    Knob::unset("trainable_layers", count(0, 100_000), "everything learns", "4")
        .unit("blocks")
        .doc("only the top blocks and the final norm learn (a score head always does)")
        .source("paper: full-parameter training");
const LORA_RANK: Knob = Knob::new("lora_rank", count(0, 4096), "0")
    .doc("LoRA: only adapters of this rank learn, over a frozen base; 0: none, the model itself learns")
    .source("paper: full-parameter training");
const LORA_ALPHA: Knob = Knob::new("lora_alpha", ABOVE_ZERO, "32.0")
    .doc("what an adapter adds is scaled by lora_alpha / lora_rank; larger learns faster")
    .source("TRL");
const LORA_TARGETS: Knob = Knob::new("lora_targets", Kind::Modules, "\"all-linear\"")
    .doc(
        "which linear maps get an adapter: by name, as [\"q_proj\", \"v_proj\"], or all of every \
          block; one that matches nothing is an error",
    )
    .source("QLoRA, arXiv 2305.14314, section 4");
const LORA_DROPOUT: Knob = Knob::new("lora_dropout", BELOW_ONE, "0.0")
    .doc("share of an adapter's inputs that each step leaves out; more: learns less by heart")
    .source("peft");
const LORA_RS: Knob = Knob::new("lora_rs", Kind::Switch, "false")
    .doc("rank-stabilised: scale by lora_alpha / sqrt(lora_rank), for large ranks")
    .source("peft; arXiv 2312.03732");
const DATA_OF_PREFERENCES: Knob = Knob::new("data", Kind::Data, "[]")
    .doc(
                "files of preferences, JSONL, that the daemon itself makes the training job from, once; \
                  { file = \"more.jsonl\", weight = 2.0 } takes each line twice, a weight of 0.5 about \
                  every second one",
            )
    .source(OURS);
const JOB: Knob = Knob::new("job", Kind::Name, "\"main\"")
    .doc("the name of that training job: other data or settings need another one")
    .source(OURS);
const SAVE_EVERY_STEPS: Knob = Knob::new("save_every_steps", count(1, 1_000_000_000), "100")
    .unit("steps")
    .doc(
        "training's own state is saved after so many; lower: less is done again after a crash, \
          more is written",
    )
    .source(OURS);
const SAVE_EVERY_S: Knob = Knob::new("save_every_s", count(1, 31_536_000), "600")
    .unit("seconds")
    .doc("or after so long, whichever comes first")
    .source(OURS);

pub(crate) static TRAIN: Section = Section {
    name: "train",
    repeated: false,
    doc: "The DPO update of each iteration.",
    frozen: true,
    knobs: &[
        LOSS,
        BETA,
        LABEL_SMOOTHING,
        Knob::new("learning_rate", ABOVE_ZERO, "5e-7")
            .doc("too small: nothing is learnt; too large: the policy breaks")
            .source(TABLE_7),
        SCHEDULE,
        WARMUP_RATIO,
        Knob::new("epochs", count(1, 10_000), "2")
            .unit("times each pair is seen")
            .doc("more: closer to the data, further from the reference")
            .source(TABLE_7),
        Knob::new("batch_pairs", count(1, 1 << 20), "128")
            .unit("pairs an optimiser step")
            .doc("larger: fewer and smoother steps")
            .source(TABLE_7),
        MICRO_BATCH_PAIRS,
        MAX_GRAD_NORM,
        LOSS_GROWTH_MAX,
        Knob::new("kl_max", NOT_NEGATIVE, "1000.0")
            .unit("nats a response")
            .doc(
                "the mean over the last five steps' responses of how far the policy's log-prob fell \
                  below the reference's; above it the update is stopped; 0: no such limit",
            )
            .source("ours: sound updates stay within some hundreds even with a beta of 0.01"),
        STUCK_STEPS,
        WEIGHT_DECAY,
        ADAM_BETA1,
        ADAM_BETA2,
        ADAM_EPSILON,
        MAX_LENGTH,
        MAX_PROMPT_LENGTH,
        OVERLONG,
        CHECKPOINTING,
        TRAINABLE_LAYERS,
        LORA_RANK,
        LORA_ALPHA,
        LORA_TARGETS,
        LORA_DROPOUT,
        LORA_RS,
        Knob::new("history", Kind::Word(&["all", "newest"]), "\"all\"")
            .doc(
                "an iteration trains on the preferences of all iterations so far, or its own only; \
                  offline ones are not part of it",
            )
            .source("paper, section 3.3: all (newest in its scripts)"),
        Knob::new("history_weight", ABOVE_ZERO, "1.0")
            .doc(
                "weight of earlier iterations' preferences in the loss, against 1 of its own; a \
                  step's loss is the weighted mean of its pairs",
            )
            .source(OURS),
        Knob::new("offline", Kind::Sets, "[]")
            .doc(
                "preference sets (`rlhfctl preferences add`) that every iteration trains on, before \
                  its own preferences and whatever `history` says",
            )
            .source("paper, section 3.3: an offline set may be added (D_off)"),
        Knob::new("offline_weight", ABOVE_ZERO, "1.0")
            .doc("weight of their preferences in the loss, against 1 of the iteration's own")
            .source(OURS),
        Knob::new(
            "reference",
            Kind::Word(&["fixed", "previous", "every", "average"]),
            "\"fixed\"",
        )
        .doc(
            "which checkpoint an iteration's update is held to: \"fixed\" is [run] reference, else the \
              policy that the run begins with; \"previous\" the policy that the iteration begins with; \
              \"every\" the head as it was at the last iteration that is a multiple of \
              reference_every; \"average\" a moving average of the heads' weights. One that moves lets \
              the policy drift further, and KL is measured against it. What the gate rejected is none",
        )
        .source("paper, section 3.3: fixed (previous in its scripts)"),
        Knob::new("reference_every", count(1, 1 << 20), "2")
            .unit("iterations")
            .doc("with reference = \"every\": how long a reference stays; 1 is \"previous\"")
            .source(OURS),
        Knob::new(
            "reference_decay",
            Kind::Number { low: Bound::Past(0.0), high: Bound::Past(1.0) },
            "0.4",
        )
        .doc(
            "with reference = \"average\": share of the old average in the new one, the newest head has \
              the rest; larger: the reference follows more slowly",
        )
        .source("TR-DPO (arXiv 2404.09656): 0.6 of the policy"),
        Knob::new("rescore_responses", count(0, 64), "8")
            .unit("responses")
            .doc(
                "stored responses of the update's pairs, the iteration's own first, whose log-probs \
                 policy and reference must give again before the first step, else nothing is trained and the run pauses; \
                 0: no such check",
            )
            .source(OURS),
        Knob::new("on_divergence", Kind::Word(&["pause", "keep_head"]), "\"pause\"")
            .doc(
                "an update that went wrong gives no checkpoint and its iteration ends, the head as it \
                  was; then the run pauses until `rlhfctl resume`, or the loop goes on from that head",
            )
            .source(OURS),
        SAVE_EVERY_STEPS,
        SAVE_EVERY_S,
    ],
};

pub(crate) static SFT: Section = Section {
    name: "sft",
    repeated: false,
    doc: "Supervised fine-tuning on conversations (`rlhfctl train sft`).",
    frozen: true,
    knobs: &[
        Knob::unset("base", Kind::Path, "[run] policy", "\"models/base\"")
            .doc("the model that it starts from; its chat template says where answers stand")
            .source("paper, section 3.1: LLaMA-3-8B"),
        Knob::new("data", Kind::Data, "[]")
            .doc(
                "files of conversations, JSONL, that the daemon itself makes the training job from, once; \
                  { file = \"more.jsonl\", weight = 2.0 } takes each line twice, a weight of 0.5 about \
                  every second one",
            )
            .source(OURS),
        JOB,
        Knob::new("learning_rate", ABOVE_ZERO, "2e-5")
            .doc("too small: nothing is learnt; too large: the model breaks")
            .source(SECTION_3_1),
        SCHEDULE,
        WARMUP_RATIO,
        Knob::new("epochs", count(1, 10_000), "1")
            .unit("times each conversation is seen")
            .doc("more: closer to the data, and to its wording")
            .source(SECTION_3_1),
        Knob::new("batch_sequences", count(1, 1 << 20), "32")
            .unit("blocks an optimiser step, or conversations where nothing is packed")
            .doc("larger: fewer and smoother steps")
            .source(SECTION_3_1),
        Knob::new("micro_batch_sequences", count(1, 65_536), "1")
            .unit("blocks, or conversations where nothing is packed")
            .doc("computed together; bounds memory, and changes a step only in its last bits")
            .source(OURS),
        Knob::new("packing", Kind::Switch, "true")
            .doc(
                "fill blocks with whole conversations, none of which sees another; without it each \
                  conversation is a sequence of its own",
            )
            .source(SECTION_3_1),
        Knob::new("block_tokens", count(2, 1 << 22), "8192")
            .unit("tokens")
            .doc("room of a block; a longer conversation is dropped and counted, packed or not")
            .source(SECTION_3_1),
        MAX_GRAD_NORM,
        LOSS_GROWTH_MAX,
        STUCK_STEPS,
        WEIGHT_DECAY,
        ADAM_BETA1,
        ADAM_BETA2,
        ADAM_EPSILON,
        CHECKPOINTING,
        TRAINABLE_LAYERS,
        LORA_RANK,
        LORA_ALPHA,
        LORA_TARGETS,
        LORA_DROPOUT,
        LORA_RS,
        SAVE_EVERY_STEPS,
        SAVE_EVERY_S,
    ],
};

pub(crate) static REWARD: Section = Section {
    name: "reward",
    repeated: false,
    doc: "Training of a Bradley-Terry reward model (`rlhfctl train reward`).",
    frozen: true,
    knobs: &[
        Knob::unset("base", Kind::Path, "the run's initial policy", "\"models/base\"")
            .doc("what it starts from: a policy (a score head is added) or a reward model")
            .source("paper, section 2.1: LLaMA-3-8B-Instruct"),
        DATA_OF_PREFERENCES,
        JOB,
        Knob::new("learning_rate", ABOVE_ZERO, "2e-6")
            .doc("too small: nothing is learnt; too large: the model breaks")
            .source(SECTION_2_1),
        SCHEDULE,
        WARMUP_RATIO,
        Knob::new("epochs", count(1, 10_000), "1")
            .unit("times each pair is seen")
            .doc("more than one over-fits large data soon")
            .source(SECTION_2_1),
        Knob::new("batch_pairs", count(1, 1 << 20), "512")
            .unit("pairs (groups, where a line has one) an optimiser step")
            .doc("larger: fewer and smoother steps; a group counts once, however many pairs it has")
            .source(SECTION_2_1),
        MICRO_BATCH_PAIRS,
        Knob::new("centring", NOT_NEGATIVE, "0.0")
            .doc("adds centring x (chosen + rejected score)^2 to the loss: scores gather around 0")
            .source("paper: none (TRL's center_rewards_coefficient; 0.01 in arXiv 2312.09244)"),
        Knob::new("held_out_share", BELOW_ONE, "0.0")
            .doc(
                "share of prompts that are not trained on; accuracy and calibration on them go into \
                  report.json",
            )
            .source(OURS),
        Knob::new("score_gap_min", NOT_NEGATIVE, "0.0")
            .unit("units of the data's scores")
            .doc(
                "where lines carry chosen_score and rejected_score, pairs that lie closer are left \
                  out; 0: only ties are",
            )
            .source("paper, appendix B: small margins are removed"),
        Knob::new("drop_duplicates", Kind::Switch, "true")
            .doc("a preference that stands in the data already is left out")
            .source("paper, appendix B"),
        Knob::new(
            "near_duplicates",
            Kind::Number { low: Bound::At(0.5), high: Bound::At(1.0) },
            "1.0",
        )
        .unit("share of three-word sequences in common")
        .doc("a preference this near to an earlier one is left out (by MinHash); 1: none is")
        .source(OURS),
        MAX_GRAD_NORM,
        LOSS_GROWTH_MAX,
        STUCK_STEPS,
        WEIGHT_DECAY,
        ADAM_BETA1,
        ADAM_BETA2,
        ADAM_EPSILON,
        MAX_LENGTH,
        MAX_PROMPT_LENGTH,
        CHECKPOINTING,
        TRAINABLE_LAYERS,
        LORA_RANK,
        LORA_ALPHA,
        LORA_TARGETS,
        LORA_DROPOUT,
        LORA_RS,
        SAVE_EVERY_STEPS,
        SAVE_EVERY_S,
    ],
};

pub(crate) static PREFERENCE: Section = Section {
    name: "preference",
    repeated: false,
    doc: "Training of a preference model, which compares two responses (`rlhfctl train preference`).",
    frozen: true,
    knobs: &[
        Knob::unset("base", Kind::Path, "the run's initial policy", "\"models/base\"")
            .doc("what it starts from: a policy or a preference model")
            .source("paper, section 2.1: LLaMA-3-8B-Instruct"),
        DATA_OF_PREFERENCES,
        JOB,
        Knob::new("learning_rate", ABOVE_ZERO, "5e-6")
            .doc("too small: nothing is learnt; too large: the model breaks")
            .source(SECTION_2_1),
        SCHEDULE,
        WARMUP_RATIO,
        Knob::new("epochs", count(1, 10_000), "1")
            .unit("times each pair is seen")
            .doc("more than one over-fits large data soon")
            .source(SECTION_2_1),
        Knob::new("batch_sequences", count(1, 1 << 20), "128")
            .unit("blocks an optimiser step, or pairs where nothing is packed")
            .doc("larger: fewer and smoother steps")
            .source(SECTION_2_1),
        Knob::new("micro_batch_sequences", count(1, 65_536), "1")
            .unit("blocks, or pairs where nothing is packed")
            .doc("computed together; bounds memory, and changes a step only in its last bits")
            .source(OURS),
        Knob::new("packing", Kind::Switch, "true")
            .doc(
                "fill blocks with whole pairs, none of which sees another; without it each pair is a \
                  sequence of its own",
            )
            .source(SECTION_2_1),
        Knob::new("block_tokens", count(2, 1 << 22), "3072")
            .unit("tokens")
            .doc("room of a block; a pair whose question is longer is dropped and counted, packed or not")
            .source(SECTION_2_1),
        MAX_GRAD_NORM,
        LOSS_GROWTH_MAX,
        STUCK_STEPS,
        WEIGHT_DECAY,
        ADAM_BETA1,
        ADAM_BETA2,
        ADAM_EPSILON,
        CHECKPOINTING,
        TRAINABLE_LAYERS,
        LORA_RANK,
        LORA_ALPHA,
        LORA_TARGETS,
        LORA_DROPOUT,
        LORA_RS,
        SAVE_EVERY_STEPS,
        SAVE_EVERY_S,
    ],
};
