//! Training settings: what shapes a training besides its data and its seed.
//!
//! In: the `[train]`, `[sft]`, `[reward]` or `[preference]` table of a configuration, or a settings file
//! of the worker's file mode with `--set` words. Out: checked [`TrainSettings`], or all that is wrong. Control and
//! worker share this struct, so that the settings file in an iteration folder is read as written.

use std::path::Path;

use crate::knobs::{self, Section};
use crate::problem::{Findings, Problem, Problems};
use crate::raw::{self, Given, RawTable, RawValue};
use crate::sections::Rows;
use crate::setting::{LoraTargets, section, words};
use crate::values::{Entry, dotted};

/// What is trained; decides the defaults, and which keys have a part in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Training {
    /// Direct preference optimisation of a policy.
    Dpo,
    /// Supervised fine-tuning of a policy on conversations.
    Sft,
    /// A Bradley-Terry reward model.
    Reward,
    /// A model that compares two responses.
    Preference,
}

words! {
    /// The per-pair loss of DPO.
    Loss {
        /// −log σ(margin).
        Sigmoid = "sigmoid",
        /// −(1−ε) log σ(margin) − ε log σ(−margin), ε the label smoothing.
        Cdpo = "cdpo",
    }
}

words! {
    /// The shape of the rate after warm-up.
    Shape {
        /// Half a cosine, from the base rate to 0 at the end.
        Cosine = "cosine",
        /// A straight line, from the base rate to 0 at the end.
        Linear = "linear",
        /// The base rate throughout.
        Constant = "constant",
    }
}

words! {
    /// What happens to a pair that is longer than `max_length`.
    Overlong {
        /// The pair is left out, and counted.
        Drop = "drop",
        /// Each side keeps its first `max_length` ids; a pair whose prompt fills them is left out.
        Truncate = "truncate",
    }
}

words! {
    /// Which iterations' preferences an update trains on.
    History {
        /// Those of all iterations so far.
        All = "all",
        /// Those of its own iteration only.
        Newest = "newest",
    }
}

section! {
    /// Everything that shapes a training besides its data and its seed. Ranges, defaults and their
    /// sources stand in the rows of `knobs`.
    TrainSettings {
        /// The per-pair loss (DPO only).
        loss: Loss,
        /// Strength of the pull towards the reference; above 0 (DPO only).
        beta: f64,
        /// Share of labels that cdpo takes to be swapped; in [0, 0.5).
        label_smoothing: f64,
        /// Base rate of AdamW; above 0.
        learning_rate: f64,
        /// Shape of the rate after warm-up.
        schedule: Shape,
        /// Warm-up steps = ceil(ratio × steps); in [0, 1].
        warmup_ratio: f64,
        /// Times that each pair or conversation is seen; at least 1.
        epochs: u32,
        /// Pairs of one optimiser step; at least 1.
        batch_pairs: u32,
        /// Pairs forwarded together; bounds memory.
        micro_batch_pairs: u32,
        /// Blocks (conversations, where nothing is packed) of one optimiser step (SFT, preference).
        batch_sequences: u32,
        /// Of them forwarded together; bounds memory (SFT, preference).
        micro_batch_sequences: u32,
        /// Whether blocks are filled with several conversations (SFT, preference).
        packing: bool,
        /// Tokens of a block, and of the longest conversation that is kept (SFT, preference).
        block_tokens: u32,
        /// Pull of each pair's scores towards a mean of 0; 0: none (reward model only).
        centring: f64,
        /// Share of prompts that are not trained on, for the report; below 1 (reward model only).
        held_out_share: f64,
        /// Pairs whose given scores lie closer are left out; 0: only ties are (reward model only).
        score_gap_min: f64,
        /// Whether exact repetitions are left out (reward model only).
        drop_duplicates: bool,
        /// Share of three-word sequences in common from which two preferences are one; 1: none
        /// (reward model only).
        near_duplicates: f64,
        /// The mean loss of the last steps, as a factor of the first one's, that stops a training; 0: none.
        loss_growth_max: f64,
        /// Mean nats a response below the reference that stop a training; 0: none (DPO only).
        kl_max: f64,
        /// Steps of chance in a row that stop a training; 0: none.
        stuck_steps: u32,
        /// Gradients are scaled down to this norm; 0 leaves them as they are.
        max_grad_norm: f64,
        /// Decoupled weight decay; never on norms and biases.
        weight_decay: f64,
        /// Decay of the first moment; in [0, 1).
        adam_beta1: f64,
        /// Decay of the second moment; in [0, 1).
        adam_beta2: f64,
        /// Added to the root of the bias-corrected second moment; above 0.
        adam_epsilon: f64,
        /// Longest side of a pair, prompt and response, in tokens.
        max_length: u32,
        /// Longest prompt in tokens; `None` leaves prompts to `max_length`.
        max_prompt_length: Option<u32>,
        /// What happens to longer pairs (reward training always drops).
        overlong: Overlong,
        /// Compute each block again in the backward pass instead of keeping its activations.
        activation_checkpointing: bool,
        /// Only the top so many blocks and the final norm learn (a score head always does); `None`:
        /// everything.
        trainable_layers: Option<u32>,
        /// Rank of LoRA's adapters; 0: none, the model itself learns.
        lora_rank: u32,
        /// What an adapter adds is scaled by alpha / rank; above 0.
        lora_alpha: f64,
        /// Which linear maps get an adapter.
        lora_targets: LoraTargets,
        /// Share of an adapter's inputs that a step leaves out; in [0, 1).
        lora_dropout: f64,
        /// Scale by alpha / √rank instead.
        lora_rs: bool,
    }
}

impl TrainSettings {
    /// The paper's settings (arXiv 2405.07863, §2.1 and §3.3), and transformers' where it is silent.
    ///
    /// # Errors
    /// Never, as a test shows: the rows' defaults lie in the rows' ranges.
    pub fn defaults(training: Training) -> Result<Self, Problems> {
        Self::read(training, "", &[])
    }

    /// Reads the text of a settings file, then `KEY=VALUE` words over it.
    ///
    /// The keys stand at the top level, or in the table of a whole configuration: `[train]` for
    /// DPO, `[sft]`, `[reward]`, `[preference]`. The daemon's own keys there (when to save, which
    /// history) shape no update and are passed over, as are DPO's keys in another training's file.
    ///
    /// # Errors
    /// All that is wrong, with lines.
    pub fn read(training: Training, text: &str, overrides: &[String]) -> Result<Self, Problems> {
        let mut findings = Findings::default();
        let whole = raw::read(text, &mut findings);
        let mut table = own_table(training, whole, &mut findings);
        let mut words = RawTable::new();
        for word in overrides {
            match word.split_once('=') {
                Some((key, value)) => {
                    words.insert(key.trim().to_owned(), raw::read_override(value.trim()));
                }
                None => {
                    let what = format!("`--set {word}` has no `=`; write `--set KEY=VALUE`");
                    findings.add(None, "", what);
                }
            }
        }
        table.extend(words);
        let settings = Self::from_table(training, &table, &mut findings);
        findings.finish(settings)
    }

    /// The settings as a file that [`TrainSettings::read`] takes: what goes into an iteration's
    /// folder. Equal settings give equal text.
    #[must_use]
    pub fn to_toml(&self, training: Training) -> String {
        let rows = self.rows(training).into_iter();
        rows.filter_map(|(key, value)| Some(crate::frozen::line(key, &value?))).collect()
    }

    /// The keys that have a part in this training, and their values.
    pub(crate) fn rows(&self, training: Training) -> Rows {
        let own = own_section(training);
        self.values().into_iter().filter(|(key, _)| own.knob(key).is_some()).collect()
    }

    fn from_table(training: Training, table: &RawTable, findings: &mut Findings) -> Option<Self> {
        let (own, dpo) = (own_section(training), own_section(Training::Dpo));
        let mut entry = Entry::defaults(own);
        let mut fallback = Entry::defaults(dpo);
        for (key, given) in table {
            if own.knob(key).is_none() && dpo.knob(key).is_some() {
                fallback.set(key, given, findings);
            } else {
                entry.set(key, given, findings);
            }
        }
        Self::checked(training, &entry, &fallback, findings)
    }

    /// From the values of the training's own table; `fallback` is DPO's, for the keys that another
    /// training has no rows for.
    pub(crate) fn checked(
        training: Training,
        entry: &Entry,
        fallback: &Entry,
        findings: &mut Findings,
    ) -> Option<Self> {
        let settings = Self::of(entry, fallback, Path::new(""))?;
        if training == Training::Dpo
            && settings.loss == Loss::Sigmoid
            && settings.label_smoothing > 0.0
        {
            let what = format!(
                "is {}, but `loss = \"sigmoid\"` has no smoothing; \
                 use `loss = \"cdpo\"`, or set label_smoothing to 0",
                settings.label_smoothing
            );
            let key = "label_smoothing";
            findings.add(entry.line_of(key), dotted(entry.section, key), what);
        }
        if settings.lora_rank > 0 && settings.trainable_layers.is_some() {
            let key = "trainable_layers";
            let what = "and lora_rank exclude each other: with adapters the model itself is \
                        frozen; leave one of the two out";
            findings.add(entry.line_of(key), dotted(entry.section, key), what.to_owned());
        }
        if let Some(prompt) = settings.max_prompt_length.filter(|max| *max >= settings.max_length) {
            let key = "max_prompt_length";
            let what = format!(
                "is {prompt}, which leaves no room for a response: max_length is {}",
                settings.max_length
            );
            findings.add(entry.line_of(key), dotted(entry.section, key), what);
        }
        Some(settings)
    }
}

fn own_section(training: Training) -> &'static Section {
    match training {
        Training::Dpo => &knobs::TRAIN,
        Training::Sft => &knobs::SFT,
        Training::Reward => &knobs::REWARD,
        Training::Preference => &knobs::PREFERENCE,
    }
}

/// The table of this training in a whole configuration, else the top level itself.
fn own_table(training: Training, whole: RawTable, findings: &mut Findings) -> RawTable {
    let is_configuration = ["train", "sft", "reward", "preference", "run"]
        .iter()
        .any(|name| matches!(whole.get(*name), Some(Given { value: RawValue::Table(_), .. })));
    if !is_configuration {
        return whole;
    }
    for (key, given) in &whole {
        let known = knobs::SECTIONS.iter().any(|section| section.name == key);
        if !known {
            let names = knobs::SECTIONS.iter().map(|section| section.name);
            let nearest = crate::nearest(key, names).unwrap_or("train");
            findings.add(given.line, key.clone(), format!("is unknown; did you mean [{nearest}]?"));
        }
    }
    match whole.get(own_section(training).name) {
        Some(Given { value: RawValue::Table(table), .. }) => table.clone(),
        _ => RawTable::new(),
    }
}

impl Problem {
    /// The last part of the key.
    #[must_use]
    pub fn leaf(&self) -> &str {
        self.key.rsplit('.').next().unwrap_or(&self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<TrainSettings, Problems> {
        TrainSettings::read(Training::Dpo, text, &[])
    }

    #[test]
    fn an_empty_file_gives_the_papers_settings() {
        let dpo = TrainSettings::defaults(Training::Dpo).unwrap();
        assert_eq!((dpo.beta, dpo.learning_rate, dpo.epochs), (0.1, 5e-7, 2));
        assert_eq!((dpo.batch_pairs, dpo.warmup_ratio), (128, 0.03));
        let sft = TrainSettings::defaults(Training::Sft).unwrap();
        assert_eq!((sft.learning_rate, sft.epochs, sft.batch_sequences), (2e-5, 1, 32));
        assert_eq!((sft.schedule, sft.warmup_ratio), (Shape::Cosine, 0.03));
        assert_eq!((sft.packing, sft.block_tokens), (true, 8192));
        let reward = TrainSettings::defaults(Training::Reward).unwrap();
        assert_eq!((reward.learning_rate, reward.epochs, reward.batch_pairs), (2e-6, 1, 512));
        let preference = TrainSettings::defaults(Training::Preference).unwrap();
        assert_eq!((preference.learning_rate, preference.epochs), (5e-6, 1));
        assert_eq!((preference.schedule, preference.warmup_ratio), (Shape::Cosine, 0.03));
        assert_eq!((preference.batch_sequences, preference.block_tokens), (128, 3072));
    }

    const EVERY_KEY: &str = "loss='cdpo'\nbeta=0.2\nlabel_smoothing=0.1\nlearning_rate=1e-3\n\
         schedule='linear'\nwarmup_ratio=0\nepochs=3\nbatch_pairs=4\nmicro_batch_pairs=1\n\
         max_grad_norm=0.5\nweight_decay=0.1\nadam_beta1=0.8\nadam_beta2=0.95\n\
         adam_epsilon=1e-6\nmax_length=64\nmax_prompt_length=32\noverlong='truncate'\n\
         activation_checkpointing=true\ntrainable_layers=2\n\
         lora_rank=0\nlora_alpha=4\nlora_targets=['q_proj','mlp.up_proj']\nlora_dropout=0.1\n\
         lora_rs=true\nloss_growth_max=8\nkl_max=200\nstuck_steps=50\n";

    #[test]
    fn every_key_is_read_from_the_top_level_and_from_a_configuration() {
        let settings = read(EVERY_KEY).unwrap();
        assert_eq!(EVERY_KEY.lines().count(), settings.rows(Training::Dpo).len());
        assert_eq!((settings.loss, settings.schedule), (Loss::Cdpo, Shape::Linear));
        assert_eq!((settings.max_prompt_length, settings.trainable_layers), (Some(32), Some(2)));
        assert_eq!(settings.overlong, Overlong::Truncate);
        assert!(settings.activation_checkpointing && settings.lora_rs);
        let named = ["q_proj", "mlp.up_proj"].map(str::to_owned).to_vec();
        assert_eq!(settings.lora_targets, LoraTargets::Named(named));
        let whole = format!("[run]\npolicy='p'\n[train]\n{EVERY_KEY}history='newest'\n");
        assert_eq!(read(&whole).unwrap(), settings);
        // A reward training of the same configuration does not see [train].
        let reward = TrainSettings::read(Training::Reward, &whole, &[]).unwrap();
        assert_eq!(reward, TrainSettings::defaults(Training::Reward).unwrap());
        // DPO's keys have no part in another training's own file, but do no harm.
        let reward = TrainSettings::read(Training::Reward, EVERY_KEY, &[]).unwrap();
        assert_eq!((reward.epochs, reward.max_length), (3, 64));
        let sft = TrainSettings::read(Training::Sft, EVERY_KEY, &[]).unwrap();
        assert_eq!((sft.epochs, sft.batch_sequences), (3, 32));
        let message = read("block_tokens = 64").unwrap_err().to_string();
        assert!(message.contains("it belongs in [sft]"), "{message}");
        let message = read("centring = 0.1").unwrap_err().to_string();
        assert!(message.contains("it belongs in [reward]"), "{message}");
        let reward = "centring = 0.01\nheld_out_share = 0.2\nscore_gap_min = 1\ndrop_duplicates = false\nnear_duplicates = 0.8";
        let reward = TrainSettings::read(Training::Reward, reward, &[]).unwrap();
        assert_eq!((reward.centring, reward.held_out_share), (0.01, 0.2));
        assert_eq!((reward.score_gap_min, reward.drop_duplicates), (1.0, false));
        assert_eq!(reward.near_duplicates, 0.8);
        let all = TrainSettings::read(Training::Reward, "held_out_share = 1.0", &[]);
        assert!(all.unwrap_err().to_string().contains("held_out_share"));
    }

    #[test]
    fn the_text_of_settings_is_read_as_the_same_settings() {
        for training in [Training::Dpo, Training::Sft, Training::Reward, Training::Preference] {
            let settings = TrainSettings::read(training, "learning_rate=3.7e-6", &[]).unwrap();
            let text = settings.to_toml(training);
            assert_eq!(TrainSettings::read(training, &text, &[]).unwrap(), settings, "{text}");
        }
        let settings = read(EVERY_KEY).unwrap();
        assert_eq!(read(&settings.to_toml(Training::Dpo)).unwrap(), settings);
    }

    #[test]
    fn overrides_win_and_take_bare_words() {
        let words = ["beta=0.3".to_owned(), "schedule=constant".to_owned()];
        let settings = TrainSettings::read(Training::Dpo, "beta = 0.2", &words).unwrap();
        assert_eq!((settings.beta, settings.schedule), (0.3, Shape::Constant));
        let error = TrainSettings::read(Training::Dpo, "", &["beta".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("--set KEY=VALUE"), "{error}");
    }

    #[test]
    fn an_unknown_key_names_the_nearest_right_one() {
        for (wrong, right) in [
            ("learning_rat = 1.0", "learning_rate"),
            ("lable_smoothing = 0.0", "label_smoothing"),
            ("batchpairs = 3", "batch_pairs"),
            ("epoch = 1", "epochs"),
        ] {
            let message = read(wrong).unwrap_err().to_string();
            assert!(message.contains(&format!("did you mean `{right}`")), "{message}");
        }
    }

    #[test]
    fn bad_values_are_refused_by_name_and_all_at_once() {
        let bad = [
            "beta = 0",
            "label_smoothing = 0.5",
            "learning_rate = inf",
            "schedule = 'cosin'",
            "warmup_ratio = 1.5",
            "epochs = 0",
            "batch_pairs = -2",
            "micro_batch_pairs = 0",
            "max_grad_norm = -1",
            "adam_beta2 = 1.0",
            "adam_epsilon = 0.0",
            "max_length = 99999999999",
            "overlong = 'cut'",
            "activation_checkpointing = 1",
            "trainable_layers = -1",
            "loss = 'ipo'",
            "lora_rank = -1",
            "lora_alpha = 0",
            "lora_targets = []",
            "lora_dropout = 1.0",
            "lora_rs = 'yes'",
        ];
        for text in bad.into_iter().chain(["beta = nan", "beta = 'high'", "epochs = 1.5"]) {
            let problems = read(text).unwrap_err().0;
            assert_eq!(problems[0].leaf(), text.split(' ').next().unwrap(), "{problems:?}");
        }
        assert_eq!(read(&bad.join("\n")).unwrap_err().0.len(), bad.len());
        assert!(read("beta = ").unwrap_err().to_string().contains("no TOML"));
    }

    #[test]
    fn rules_between_keys_hold() {
        let message = read("label_smoothing = 0.1").unwrap_err().to_string();
        assert!(message.contains("cdpo"), "{message}");
        assert!(read("label_smoothing = 0.1\nloss = 'cdpo'").is_ok());
        assert!(read("max_length = 64\nmax_prompt_length = 64").is_err());
        let message = read("lora_rank = 8\ntrainable_layers = 1").unwrap_err().to_string();
        assert!(message.contains("lora_rank"), "{message}");
        assert!(read("lora_targets = 'q_proj'").is_err() && read("lora_targets = [1]").is_err());
    }
}
