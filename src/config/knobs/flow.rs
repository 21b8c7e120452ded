//! Knobs of the run and of the stages, in flow order; training's stand in `train`.
//!
//! In: nothing. Out: rows.

use super::{
    ABOVE_ZERO, Bound, FACTOR_MAX, Kind, Knob, NOT_NEGATIVE, SHARE, Section, TEMPERATURE, count,
};

const OURS: &str = "ours";
/// The seed is stored as a signed 64-bit number.
const SEED_MAX: u64 = i64::MAX as u64;

pub(crate) static RUN: Section = Section {
    name: "run",
    repeated: false,
    doc: "Which run this is. Another policy, start, reference or seed needs another name.",
    frozen: true,
    knobs: &[
        Knob::new("name", Kind::Name, "\"main\"")
            .doc("the run's name in tables and paths")
            .source(OURS),
        Knob::required("policy", Kind::Path, "\"models/policy\"")
            .doc("the initial policy: a Hugging Face model folder")
            .source("paper: its SFT of LLaMA-3-8B"),
        Knob::new("start", Kind::Start, "\"policy\"")
            .doc(
                "what the run begins with: \"policy\" itself, or what the training job \"sft/NAME\" \
                  makes of it; the loop waits for that job",
            )
            .source("paper, section 3.1: SFT comes first"),
        Knob::unset("reference", Kind::Path, "the initial policy", "\"models/reference\"")
            .doc("what the policy is held to, in every iteration the same")
            .source("paper, section 3.3: the initial policy, fixed"),
        Knob::new("seed", count(0, SEED_MAX), "1")
            .doc("all random numbers of the run follow from it")
            .source(OURS),
        Knob::new("iterations_max", count(0, 1_000_000), "3")
            .unit("iterations")
            .doc("the run ends after so many; 0: it never ends, and idles for prompts")
            .source("paper, section 3.3: three"),
        Knob::new("prompts_per_iteration", count(1, 100_000_000), "20000")
            .unit("prompts")
            .doc("an iteration starts by itself when so many fresh prompts are queued")
            .source("paper, section 3.3: 60K prompts in three parts"),
        Knob::new("when_short", Kind::Word(&["wait", "take_rest"]), "\"wait\"")
            .doc("with fewer fresh prompts: \"wait\" for more, or \"take_rest\" after wait_max_s")
            .source(OURS),
        Knob::new("wait_max_s", count(0, 31_536_000), "3600")
            .unit("seconds")
            .doc("how long \"take_rest\" waits for more prompts, from the last upload on")
            .source(OURS),
        Knob::new("reuse_prompts", Kind::Switch, "false")
            .doc(
                "where fresh prompts do not suffice, draw used ones again, those used longest ago \
                  first",
            )
            .source("paper, section 3.3: each iteration has prompts of its own"),
        Knob::new("patience", count(0, 1_000_000), "0")
            .unit("iterations")
            .doc(
                "the run ends after so many without a policy better than the best by evaluation; 0: \
                  it goes on to iterations_max",
            )
            .source("paper: none"),
    ],
};

pub(crate) static PROMPTS: Section = Section {
    name: "prompts",
    repeated: false,
    doc: "Which prompts are taken.",
    frozen: true,
    knobs: &[Knob::new("prompt_tokens_max", count(1, 1 << 22), "1024")
        .unit("tokens")
        .doc("a longer prompt is set aside, and counted")
        .source("the paper's scripts: max_prompt_length 1000 and 1024")],
};

pub(crate) static GENERATE: Section = Section {
    name: "generate",
    repeated: false,
    doc: "How the policy writes.",
    frozen: true,
    knobs: &[
        Knob::new("max_new_tokens", count(1, 1 << 22), "2048")
            .unit("tokens")
            .doc(
                "a response is cut here; too low: answers are truncated; too high: memory and time",
            )
            .source("paper, algorithm 2"),
        Knob::new("batch_prompts", count(0, 65_536), "0")
            .unit("prompts")
            .doc(
                "prompts written together; 0: by the memory plan. It shapes the last bits of a \
                  sum, and so is frozen with the iteration",
            )
            .source(OURS),
    ],
};

pub(crate) static ARMS: Section = Section {
    name: "generate.arms",
    repeated: true,
    doc: "Ways to sample; each prompt gets the responses of all arms. Without any: n = 4 at \
          temperature 1.0 and n = 4 at 0.7, the paper's algorithm 2.",
    frozen: true,
    knobs: &[
        Knob::unset("name", Kind::Name, "t and the temperature, as in t1.0", "\"t1.0\"")
            .doc("the arm's name in the tables")
            .source(OURS),
        Knob::new("policy", Kind::Policy, "\"current\"")
            .doc(
                "the policy that writes: \"current\" is the head, \"previous\" the one before it in \
                 its line (the initial one in the first iteration). All arms \"initial\": offline \
                 DPO, by the very steps of the online one",
            )
            .source("paper, algorithms 1 and 2: the current policy samples"),
        Knob::new("temperature", Kind::Number { low: TEMPERATURE.0, high: TEMPERATURE.1 }, "1.0")
            .doc("0: greedy, and then n must be 1; higher: more various, and worse on average")
            .source("paper, algorithm 2: half at 1.0, half at 0.7"),
        Knob::new("top_p", Kind::Number { low: Bound::Past(0.0), high: Bound::At(1.0) }, "1.0")
            .doc("only the likeliest tokens that together hold this share; 1: all")
            .source("paper: none"),
        Knob::new("top_k", count(0, 1 << 22), "0")
            .unit("tokens")
            .doc("only the k likeliest tokens; 0: all")
            .source("paper: none"),
        Knob::new("n", count(1, 1024), "4")
            .unit("responses a prompt")
            .doc("more: better pairs, more to generate and to label; at least 2 over all arms")
            .source("paper, algorithm 2: n = 8, half in each of two arms"),
    ],
};

pub(crate) static LABEL: Section = Section {
    name: "label",
    repeated: false,
    doc: "How responses are scored.",
    frozen: true,
    knobs: &[
        Knob::new("batch_responses", count(0, 65_536), "0")
            .unit("responses")
            .doc("responses scored together; 0: by the memory plan")
            .source(OURS),
        Knob::new("length_penalty", Kind::Number { low: Bound::At(0.0), high: FACTOR_MAX }, "0.0")
            .unit("units of the combined score a character or token")
            .doc(
                "what a response's length takes off its combined score; 0: nothing; too high: the \
                  shortest answer wins",
            )
            .source("paper, equation 9 and table 4: 0.001 per character"),
        Knob::new("length_penalty_fit", Kind::Switch, "false")
            .doc(
                "true: each iteration fits the penalty, so that the rank correlation of score and \
                  length comes to 0; leave length_penalty out then",
            )
            .source(OURS),
        Knob::unset(
            "length_unit",
            Kind::Word(&["characters", "tokens"]),
            "no penalty; with one it must be said",
            "\"characters\"",
        )
        .doc("what a length is counted in")
        .source("paper, equation 9: characters"),
    ],
};

pub(crate) static SCORERS: Section = Section {
    name: "label.scorers",
    repeated: true,
    doc: "What scores: any number at once, each scores every response; the combined score is the sum of \
          weight × score. Without any: the reward model that `rlhfctl train reward` makes under the \
          name main (job = \"reward/main\").",
    frozen: true,
    knobs: &[
        Knob::new("name", Kind::Name, "\"reward\"")
            .doc("the scorer's name in the tables")
            .source(OURS),
        Knob::new("kind", Kind::Word(&["reward", "preference"]), "\"reward\"")
            .doc(
                "\"reward\" gives each response a score; \"preference\" compares two responses to a \
                  prompt, in both orders",
            )
            .source("paper, section 2.1: it trains both"),
        Knob::unset("model", Kind::Path, "see job", "\"models/reward\"")
            .doc(
                "a model's folder: AutoModelForSequenceClassification, or a preference model with its \
                  preference.json; either this or job",
            )
            .source(OURS),
        Knob::unset("job", Kind::Job, "see model", "\"reward/main\"")
            .doc(
                "a reward model that this run trains, or as \"preference/NAME\" a preference model: the \
                  loop waits for it; either this or model",
            )
            .source(OURS),
        Knob::unset(
            "compare",
            Kind::Word(&["round_robin", "linear"]),
            "\"round_robin\"; a reward model compares nothing",
            "\"round_robin\"",
        )
        .doc(
            "of a preference model: \"round_robin\" asks all n(n - 1)/2 pairs of a prompt, and a \
              response's score is its mean P over the others; \"linear\" asks at most 2(n - 1) for the \
              best (1) and the worst (0), and orders no others",
        )
        .source("linear: the paper's scripts"),
        Knob::new("score_position", Kind::Word(&["transformers", "last"]), "\"transformers\"")
            .doc("the last position whose id is not the pad id, as transformers does, or the \"last\"")
            .source("transformers: what most reward models were trained at"),
        Knob::unset(
            "weight",
            Kind::Number { low: Bound::At(0.0), high: FACTOR_MAX },
            "1.0; a canary has none",
            "1.0",
        )
        .doc("its part in the combined score, above 0")
        .source("paper: one scorer"),
        Knob::new("normalise", Kind::Word(&["none", "standard", "rank"]), "\"none\"")
            .doc(
                "before weighing: \"none\"; \"standard\" to mean 0 and variance 1 over the iteration's \
                  labelled responses; \"rank\" to (rank − 1) / (responses − 1) among them, from 0 to 1, \
                  where equal scores share the mean of their ranks",
            )
            .source("paper: none"),
        Knob::new("canary", Kind::Switch, "false")
            .doc(
                "true: its scores are kept and told, and training never uses them: they show where \
                  the others are gamed",
            )
            .source(OURS),
    ],
};

pub(crate) static PAIR: Section = Section {
    name: "pair",
    repeated: false,
    doc: "How responses become preferences.",
    frozen: true,
    knobs: &[
        Knob::new(
            "rule",
            Kind::Word(&["best_worst", "best_second", "best_random", "random", "all", "threshold"]),
            "\"best_worst\"",
        )
        .doc(
            "the best response against the worst, against the next below it, or against any below; \
              any pair; all pairs; all whose scores lie `threshold` apart. Ties are dropped and \
              counted, and the same text is one response",
        )
        .source("paper, section 3.3: best against worst"),
        Knob::new("arms", Kind::Word(&["any", "within", "across"]), "\"any\"")
            .doc(
                "which responses of a prompt may meet: any two, two \"within\" one arm, or two \
                  \"across\" different arms",
            )
            .source("paper, algorithm 2: over the responses of both arms"),
        Knob::new("unfinished", Kind::Word(&["keep", "exclude", "only_rejected"]), "\"keep\"")
            .doc(
                "responses that were cut before a stop id: like others, never paired, or never \
                  chosen",
            )
            .source("paper: says nothing"),
        Knob::new("score_gap_min", NOT_NEGATIVE, "0.0")
            .unit("units of the combined score")
            .doc("pairs whose scores lie closer give no preference; 0: only ties do not")
            .source("paper: none"),
        Knob::new("threshold", NOT_NEGATIVE, "0.0")
            .unit("units of the combined score")
            .doc("of rule = \"threshold\", above 0: how far apart the scores of its pairs lie at least")
            .source(OURS),
        Knob::new("max_pairs", count(0, 4096), "0")
            .unit("pairs a prompt")
            .doc(
                "of \"all\" and \"threshold\": so many with the widest gaps; 0: up to 4096, which is \
                  all of 91 responses",
            )
            .source(OURS),
    ],
};

pub(crate) static EVALUATE: Section = Section {
    name: "evaluate",
    repeated: false,
    doc: "The held-out prompts after each iteration, against the initial policy and the one before.",
    frozen: true,
    knobs: &[
        Knob::new(
            "temperatures",
            Kind::Numbers { low: TEMPERATURE.0, high: TEMPERATURE.1 },
            "[1.0]",
        )
        .doc("one evaluation at each; without 1.0 there is no KL")
        .source(OURS),
        Knob::new("n", count(1, 1024), "1")
            .unit("responses a prompt and temperature")
            .doc("more: narrower intervals; greedy writes one in any case")
            .source(OURS),
        Knob::unset("max_new_tokens", count(1, 1 << 22), "that of [generate]", "2048")
            .unit("tokens")
            .doc("a response is cut here")
            .source(OURS),
        Knob::new("prompts_max", count(1, 10_000_000), "1024")
            .unit("prompts")
            .doc("the first so many reserved prompts are answered; fewer: wider intervals")
            .source(OURS),
        Knob::new("bootstrap_samples", count(100, 1_000_000), "2000")
            .unit("samples")
            .doc("of the seeded bootstrap over prompts that gives the 95 % intervals")
            .source(OURS),
    ],
};

pub(crate) static GATE: Section = Section {
    name: "gate",
    repeated: false,
    doc: "What makes a trained checkpoint the head. Each limit is one more condition; without any, \
          every checkpoint does. Figures are of the reserved prompts, by the first scorer with a weight \
          at the first temperature; one that was not measured fails.",
    frozen: true,
    knobs: &[
        Knob::unset("win_rate_min", SHARE, "no limit", "0.5")
            .doc("share of paired answers that the policy wins at least, ties one half")
            .source(OURS),
        Knob::new("against", Kind::Word(&["initial", "previous"]), "\"initial\"")
            .doc(
                "of win_rate_min: the run's initial policy, or the one that the iteration began with \
                  (where its answers were made with other settings or scorers, the initial one)",
            )
            .source(OURS),
        Knob::unset("kl_max", NOT_NEGATIVE, "no limit", "30.0")
            .unit("nats a response")
            .doc("KL(policy‖reference) at most, by the k3 estimator at temperature 1")
            .source(OURS),
        Knob::unset("length_growth_max", ABOVE_ZERO, "no limit", "1.5")
            .doc("mean response tokens at most, as a factor of the initial policy's")
            .source(OURS),
        Knob::unset("chosen_logprob_fall_max", NOT_NEGATIVE, "no limit", "50.0")
            .unit("nats a response")
            .doc(
                "how far the log-prob of the chosen responses may fall below the reference's, over the \
                  last tenth of the training steps",
            )
            .source(OURS),
        Knob::unset(
            "canary_gain_min",
            Kind::Number { low: Bound::Open, high: Bound::Open },
            "no limit",
            "0.0",
        )
        .unit("units of the canary's score")
        .doc("gain over the initial policy at least, by every scorer that is a canary")
        .source(OURS),
        Knob::new("on_fail", Kind::Word(&["keep_head", "pause"]), "\"keep_head\"")
            .doc("the old head stays, and the loop goes on from it, or pauses until `rlhfctl resume`")
            .source(OURS),
    ],
};
