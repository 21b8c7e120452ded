//! The memory plan: what each kind of work needs by config.json and the weights' headers, whether it
//! fits, and the nearest setting that does.
//!
//! In: a configuration, facts of the models, devices. Out: findings. All sums are estimates: a worker
//! is started, and its allocator rounds. Pure but for the report. May not enter: asking a device.

use rlhfd_config::{CheckedConfig, ScorerKind, TrainSettings, Training};
use rlhfd_domain::split::{Demand, Learning, Sizes, Weights, fewest, planned_mib, state_bytes};

use super::ModelFacts;
use super::folder::{Facts, Use, look};
use super::report::Report;
use super::system::Room;
use crate::examples::section;

const MIB: u64 = 1 << 20;

/// What a work needs, in MiB, by its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Needs {
    pub(super) weights: u64,
    /// f32 masters (where the compute type is narrower), both moments, gradients.
    pub(super) optimiser: u64,
    pub(super) activations: u64,
    /// The same by where it lies, for several devices.
    pub(crate) demand: Demand,
}

impl Needs {
    pub(crate) fn total(self) -> u64 {
        planned_mib(self.weights + self.optimiser + self.activations)
    }
}

/// Bytes of a number in compute: bf16 on a GPU, f32 on the CPU.
fn compute_bytes(room: &Room) -> u64 {
    if room.is_cuda { 2 } else { 4 }
}

/// Plans every kind of work on the roomiest device, and what does not fit there on several.
pub(super) fn plan(
    config: &CheckedConfig,
    models: &ModelFacts,
    devices: &[Room],
    report: &mut Report,
) {
    let mut rooms = devices.to_vec();
    rooms.sort_by_key(|room| std::cmp::Reverse(room.free_mib));
    let (rooms, Some(room)) = (rooms.as_slice(), rooms.first()) else { return };
    if let Some(policy) = &models.policy {
        let n = u64::from(config.generate.responses_per_prompt());
        let tokens =
            u64::from(config.prompts.prompt_tokens_max) + u64::from(config.generate.max_new_tokens);
        let needs = generating(policy, n, tokens, compute_bytes(room));
        let mend = "lower [generate] max_new_tokens or n; the batch is one prompt already";
        told("generate", needs, rooms, || Some(mend.to_owned()), report);
        training(("train", Training::Dpo), policy, &config.train.settings, rooms, report);
    }
    // One scorer is loaded at a time: the most demanding one decides.
    let response = u64::from(config.generate.max_new_tokens);
    let needs = models.scorers.iter().map(|(kind, scorer)| {
        let responses = match kind {
            ScorerKind::Reward => response,
            ScorerKind::Preference => 2 * response,
        };
        let tokens = u64::from(config.prompts.prompt_tokens_max) + responses;
        forwarding(scorer, tokens, compute_bytes(room))
    });
    if let Some(needs) = needs.max_by_key(|needs| needs.total()) {
        told("label", needs, rooms, || Some("a smaller model that scores".to_owned()), report);
    }
    for (kind, base) in &models.bases {
        let job = section(config, *kind);
        training((kind.label(), job.training), base, &job.settings, rooms, report);
    }
}

/// What to say of an adapter's target that is no part of the model; none where all are.
fn unmatched_target(about: &str, model: &Facts, settings: &TrainSettings) -> Option<String> {
    if settings.lora_rank == 0 {
        return None;
    }
    let names: Vec<String> = linear_maps(model).into_iter().map(|(name, ..)| name).collect();
    let target = settings.lora_targets.unmatched(&names)?;
    Some(format!(
        "[{about}] lora_targets: {target:?} matches no linear map of the model\n\
         try: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, or \"all-linear\""
    ))
}

fn training(
    (about, training): (&'static str, Training),
    model: &Facts,
    settings: &TrainSettings,
    rooms: &[Room],
    report: &mut Report,
) {
    let Some(room) = rooms.first() else { return };
    if let Some(what) = unmatched_target(about, model, settings) {
        report.bad(about, what);
        return;
    }
    let bytes = compute_bytes(room);
    let needs = updating(model, (training, settings), bytes);
    let nearest = || nearest_fit(model, (training, settings), bytes, room.free_mib);
    told(about, needs, rooms, || Some(format!("[{about}] {}", nearest()?)), report);
}

fn told(
    about: &'static str,
    needs: Needs,
    rooms: &[Room],
    mend: impl FnOnce() -> Option<String>,
    report: &mut Report,
) {
    let Some(room) = rooms.first() else { return };
    let sum = format!(
        "about {} MiB of {} MiB free on {} (weights {}, optimiser {}, activations {})",
        needs.total(),
        room.free_mib,
        room.name,
        needs.weights,
        needs.optimiser,
        needs.activations
    );
    if needs.total() <= room.free_mib {
        report.well(about, format!("needs {sum}"));
    } else if let Some(shares) = over_several(&needs, rooms) {
        let each = shares.iter().zip(rooms);
        let each: Vec<String> = each
            .map(|(share, room)| format!("{share} of {} MiB on {}", room.free_mib, room.name))
            .collect();
        let (count, each) = (each.len(), each.join(", "));
        report.well(about, format!("fits over {count} devices: {each}; it needs {sum}"));
    } else {
        let mend = mend().unwrap_or_else(|| "no setting makes it fit: a larger device".to_owned());
        report.bad(about, format!("does not fit: it needs {sum}\ntry: {mend}"));
    }
}

/// The shares of as few GPUs as hold it together, the roomiest first.
fn over_several(needs: &Needs, rooms: &[Room]) -> Option<Vec<u64>> {
    let on_gpus = rooms.iter().all(|room| room.is_cuda);
    let free: Vec<u64> = rooms.iter().map(|room| room.free_mib).collect();
    fewest(&free, |rooms| needs.demand.planned_mib(rooms)).filter(|_| on_gpus)
}

/// One prompt's `n` responses of `tokens` ids: weights, the cache, one step's logits.
pub(crate) fn generating(model: &Facts, n: u64, tokens: u64, bytes: u64) -> Needs {
    let cache = 2 * model.layers * model.kv_heads * model.head_dim * bytes * tokens * n;
    let logits = model.vocabulary * n * (bytes + 4);
    let weights = mib(model.weights.parameters * bytes);
    let resting = resting(model, bytes);
    let demand = Demand { block_bytes: cache / model.layers.max(1), head_bytes: logits, ..resting };
    Needs { weights, optimiser: 0, activations: mib(cache + logits), demand }
}

/// What the plan knows of a model; none where the folder is no such model. It blocks.
pub(crate) fn facts(folder: &std::path::Path, wanted: Use) -> Option<Facts> {
    look(folder, "model", wanted, &mut Report::default())
}

/// How many responses of `tokens` ids may be written together in `free_mib`: `most`, or its half,
/// quarter, … that fits; one in any case. It blocks: it reads the weights' headers.
pub(crate) fn rows_together(
    policy: &std::path::Path,
    tokens: u64,
    bytes: u64,
    free_mib: u64,
    most: u64,
) -> u64 {
    let Some(model) = look(policy, "policy", Use::Policy, &mut Report::default()) else {
        return most;
    };
    let mut together = most.max(1);
    while together > 1 && generating(&model, together, tokens, bytes).total() > free_mib {
        together /= 2;
    }
    together
}

/// What to say of a target that adapters of `policy` would be made for in vain.
pub(crate) fn vain_target(policy: &std::path::Path, settings: &TrainSettings) -> Option<String> {
    if settings.lora_rank == 0 {
        return None;
    }
    let model = look(policy, "policy", Use::Policy, &mut Report::default())?;
    unmatched_target("train", &model, settings).map(|what| what.replace("\ntry: ", "; try "))
}

/// So many tokens forward, in however many sequences.
pub(crate) fn forwarding(model: &Facts, tokens: u64, bytes: u64) -> Needs {
    let weights = mib(model.weights.parameters * bytes);
    let passing = block_bytes(model, bytes) * tokens;
    let demand = Demand { device_bytes: passing, ..resting(model, bytes) };
    Needs { weights, optimiser: 0, activations: mib(passing), demand }
}

/// A model that only lies there, on several devices.
fn resting(model: &Facts, bytes: u64) -> Demand {
    let sizes = Sizes {
        layers: model.layers,
        vocabulary: model.vocabulary,
        width: model.width,
        heads: model.heads,
        kv_heads: model.kv_heads,
        head_dim: model.head_dim,
        mlp_width: model.mlp_width,
        tied: model.tied,
        scores: model.weights.score_head,
    };
    let weights = Weights { sizes, bytes, learning: Learning::Nothing };
    Demand { weights, block_bytes: 0, device_bytes: 0, head_bytes: 0 }
}

/// What one block keeps of one position for its backward pass: inputs of two norms and two residual
/// sums, queries, keys, values, the attention's output, and gate, up and product of the MLP.
fn block_bytes(model: &Facts, bytes: u64) -> u64 {
    let attention = 2 * model.heads * model.head_dim + 2 * model.kv_heads * model.head_dim;
    (5 * model.width + attention + 4 * model.mlp_width) * bytes
}

/// What a training computes together: the key that says how many, their number, and the tokens of
/// one: both sides of a pair, or a block.
fn together(training: Training, settings: &mut TrainSettings) -> (&'static str, &mut u32, u64) {
    match training {
        Training::Dpo | Training::Reward => {
            let tokens = 2 * u64::from(settings.max_length);
            ("micro_batch_pairs", &mut settings.micro_batch_pairs, tokens)
        }
        Training::Sft | Training::Preference => {
            let tokens = u64::from(settings.block_tokens);
            ("micro_batch_sequences", &mut settings.micro_batch_sequences, tokens)
        }
    }
}

/// An update by these settings.
pub(crate) fn updating(
    model: &Facts,
    (training, settings): (Training, &TrainSettings),
    bytes: u64,
) -> Needs {
    let layers = settings.trainable_layers.map_or(model.layers, |k| u64::from(k).min(model.layers));
    let resting = resting(model, bytes);
    let learning = match (settings.lora_rank, settings.trainable_layers) {
        (0, None) => model.weights.parameters,
        (0, Some(_)) => layers * resting.weights.sizes.block(),
        (rank, _) => adapter_parameters(model, settings, u64::from(rank)),
    };
    let mut own = settings.clone();
    let (_, number, each) = together(training, &mut own);
    let tokens = u64::from(*number) * each;
    let (kept, passing) = if settings.activation_checkpointing {
        (layers * model.width * bytes * tokens, block_bytes(model, bytes) * tokens)
    } else {
        (layers * block_bytes(model, bytes) * tokens, 0)
    };
    let dropped = if settings.lora_rank > 0 && settings.lora_dropout > 0.0 {
        // A mask and what is left of its inputs, for each adapter.
        let inputs: u64 = adapted(model, settings).map(|(inputs, _)| inputs).sum();
        let blocks = if settings.activation_checkpointing { model.layers.max(1) } else { 1 };
        2 * inputs / blocks * bytes * tokens
    } else {
        0
    };
    // Logits are taken in chunks of positions; a chunk and its gradient, in f32.
    let logits = 2 * 4 * model.vocabulary * tokens.min(1024);
    let optimiser = learning * state_bytes(bytes);
    Needs {
        weights: mib(model.weights.parameters * bytes),
        optimiser: mib(optimiser),
        activations: mib(kept + passing + dropped + logits),
        demand: {
            let (learns, adapters) = match (settings.lora_rank, settings.trainable_layers) {
                (0, None) => (Learning::Everything, 0),
                (0, Some(_)) => (Learning::TopBlocks(layers), 0),
                (_, _) => (Learning::Nothing, optimiser + learning * bytes),
            };
            Demand {
                weights: Weights { learning: learns, ..resting.weights },
                // As many blocks as learn keep activations; adapters are everywhere.
                block_bytes: kept / layers.max(1) + adapters / model.layers.max(1),
                device_bytes: passing + dropped,
                head_bytes: logits,
            }
        },
    }
}

/// The linear maps of a model's blocks: name, inputs and outputs.
pub(super) fn linear_maps(model: &Facts) -> Vec<(String, u64, u64)> {
    let (query, key) = (model.heads * model.head_dim, model.kv_heads * model.head_dim);
    let maps = [
        ("self_attn.q_proj", model.width, query),
        ("self_attn.k_proj", model.width, key),
        ("self_attn.v_proj", model.width, key),
        ("self_attn.o_proj", query, model.width),
        ("mlp.gate_proj", model.width, model.mlp_width),
        ("mlp.up_proj", model.width, model.mlp_width),
        ("mlp.down_proj", model.mlp_width, model.width),
    ];
    let block = |layer: u64| {
        maps.map(|(name, inputs, outputs)| {
            (format!("model.layers.{layer}.{name}"), inputs, outputs)
        })
    };
    (0..model.layers).flat_map(block).collect()
}

/// Inputs and outputs of each linear map that gets an adapter.
fn adapted(model: &Facts, settings: &TrainSettings) -> impl Iterator<Item = (u64, u64)> {
    let maps = linear_maps(model).into_iter();
    maps.filter(|(name, _, _)| settings.lora_targets.adapts(name)).map(|(_, own, out)| (own, out))
}

fn adapter_parameters(model: &Facts, settings: &TrainSettings, rank: u64) -> u64 {
    adapted(model, settings).map(|(inputs, outputs)| rank * (inputs + outputs)).sum()
}

/// The change of settings that costs least and fits: less at a time (which changes nothing but
/// time), then activation checkpointing (a third more time), then fewer blocks that learn.
pub(super) fn nearest_fit(
    model: &Facts,
    (training, settings): (Training, &TrainSettings),
    bytes: u64,
    free_mib: u64,
) -> Option<String> {
    let fits =
        |settings: &TrainSettings| updating(model, (training, settings), bytes).total() <= free_mib;
    let mut tried = settings.clone();
    let (key, most, _) = together(training, &mut tried);
    for number in (1..=*most).rev() {
        *together(training, &mut tried).1 = number;
        if fits(&tried) {
            return Some(format!("{key} = {number}"));
        }
    }
    let mut words = format!("{key} = 1");
    if !tried.activation_checkpointing {
        tried.activation_checkpointing = true;
        words.push_str(", activation_checkpointing = true");
        if fits(&tried) {
            return Some(words);
        }
    }
    if settings.lora_rank > 0 {
        return None;
    }
    let most = settings.trainable_layers.map_or(model.layers, u64::from).min(model.layers);
    for layers in (1..=most).rev() {
        tried.trainable_layers = u32::try_from(layers).ok();
        if fits(&tried) {
            return Some(format!("{words}, trainable_layers = {layers}"));
        }
    }
    None
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(MIB)
}
