//! One training from folder to folder: what the file mode and the daemon's units both do.
//!
//! In: a [`TrainJob`]: a model folder, a reference, pairs or conversations, settings. Out: a published checkpoint
//! folder, or an error and nothing under its name. Done again after a crash it goes on from the
//! saved state, and a folder that this very unit has published is taken as it stands. May not
//! enter: frames, command lines.

use std::path::{Path, PathBuf};

use rlhfd_config::{TrainSettings, Training};
use rlhfd_protocol::manifest::FolderKind;
use rlhfd_protocol::worker::ModelRef;

use super::batches::{BatchPlan, Order};
use super::error::TrainError;
use super::examples::Examples;
use super::learners::Learners;
use super::loss::{DpoLoss, RewardLoss};
use super::mixture::DataFile;
use super::pack::TokenPair;
use super::publish::{Masters, Publication, STEPS};
use super::report::Report;
use super::rescore::Stored;
use super::start::Origin;
use super::state::{self, Resume, StatePlace};
use super::steps::StepRow;
use super::trainer::{Objective, Observer, Trained, Training as Loop};
use super::trunk::Trunk;
use super::{lora, reference, report, rescore, start};
use crate::checkpoint::{self, Draft, Heading, Standing};
use crate::device::Compute;
use crate::errors::ModelError;
use crate::model::{ModelFolder, ModelKind, Trainable, Transformer};
use crate::render::RenderRule;
use crate::verifying::{Files, Known, Verifying};

/// Where the pairs come from, or, of supervised fine-tuning, the conversations.
#[derive(Debug, Clone, PartialEq)]
pub enum PairSource {
    /// JSONL files of texts or messages; the reference's log-probs are computed with the model in
    /// this folder (DPO), or are not needed (reward model).
    Text {
        /// The files.
        files: Vec<DataFile>,
        /// How responses become ids.
        rule: RenderRule,
        /// The reference's folder.
        reference: Option<PathBuf>,
    },
    /// JSONL files of conversations, for supervised fine-tuning.
    Conversations {
        /// The files.
        files: Vec<DataFile>,
    },
    /// A JSONL file of token ids with the reference's log-probs.
    Ids {
        /// The file.
        path: PathBuf,
    },
}

/// Where a unit keeps its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateKeeping {
    /// The folder.
    pub folder: PathBuf,
    /// Whether a state found there is taken up.
    pub resume: Resume,
    /// Save after so many steps.
    pub every_steps: u64,
    /// Save after so many seconds.
    pub every_s: u64,
}

/// The base of adapters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterBase {
    /// Its folder.
    pub dir: PathBuf,
    /// Its sum, where the caller knows it; empty where not.
    pub sha256: String,
}

/// What a training publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishedAs {
    /// A model that loads as it is: adapters are merged, and lie beside.
    Model,
    /// The adapter alone, of use with its base only.
    Adapter,
}

/// A training, from folder to folder.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainJob {
    /// DPO, supervised fine-tuning, a reward model, or a preference model.
    pub training: Training,
    /// The policy that goes on, or what a reward model is made from.
    pub base: PathBuf,
    /// Its sum, where the caller knows it; a saved state of another base is never resumed.
    pub base_sha256: String,
    /// LoRA: the base that adapters are made on; None: what they were made on so far, else the model
    /// that goes on.
    pub adapter_base: Option<AdapterBase>,
    /// LoRA: what is published.
    pub published: PublishedAs,
    /// What is trained on.
    pub pairs: PairSource,
    /// What is scored again before the first step; None: nothing.
    pub stored: Option<Stored>,
    /// The settings.
    pub settings: TrainSettings,
    /// Examples of a micro-batch, where they are to be fewer than the settings say.
    pub micro_batch: Option<u64>,
    /// The order within an epoch.
    pub order: Order,
    /// For a new score head.
    pub seed: u64,
    /// The folder to publish.
    pub out: PathBuf,
    /// The unit's natural key; empty in file mode.
    pub unit: String,
    /// The parent's manifest sum; empty in file mode.
    pub parent_sha256: String,
    /// Where the state is kept; None keeps none.
    pub state: Option<StateKeeping>,
}

/// A finished training.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The published folder.
    pub standing: Standing,
    /// Every step.
    pub rows: Vec<StepRow>,
    /// The first step that this attempt made; one past the last where it made none.
    pub first_step: u64,
    /// Pairs or conversations left out, by reason.
    pub dropped: Vec<(String, u64)>,
    /// Of a reward model trained by this attempt.
    pub report: Option<Report>,
}

/// Runs a training from folder to folder.
///
/// # Errors
/// See [`TrainError`]; nothing then stands under the job's `out`.
pub fn run(
    job: &TrainJob,
    compute: Compute,
    observer: &Observer<'_>,
) -> Result<Outcome, TrainError> {
    let verifying = verifying(job);
    let origin = match open_origin(job) {
        Ok(origin) => origin,
        Err(error) => return Err(verifying.end().err().map_or(error, TrainError::from)),
    };
    let base = &origin.base;
    let (mut examples, renderer) = Examples::read(job, base)?;
    if let Some(outcome) = already_published(job, examples.dropped())? {
        return Ok(outcome);
    }
    // Begun before any computing, so that a place that cannot be written is told at once.
    let draft = Draft::begin(&job.out)?;
    let reward = start::reward_folder(job, base, renderer.as_ref(), &examples)?;
    fill_reference(job, compute, &origin, &mut examples.pairs, observer)?;
    let model = start::load(job, compute, &origin);
    // Its verdict first: a folder that is altered may not load either.
    verifying.end()?;
    let model = model?;
    rescore::check(job, (compute, &origin), &model, observer.watch)?;
    let mut trunk = Trunk::new(&model, start::activations(&job.settings));
    if own_reference(job, &origin) {
        // The reference is the base: what the model is without its adapters.
        model.adapters().set(false);
        reference::fill(&model, &mut trunk, &mut examples.pairs, observer)?;
        model.adapters().set(true);
    }
    let trained = train(job, &origin, &model, (trunk, &examples), observer)?;
    let report = measured(job, &model, &examples, observer)?;
    let lora = origin.lora.as_ref();
    let pad_id = reward.as_ref().map(|reward| reward.pad_id);
    let learnt = lora.map(|lora| lora.learnt(&trained.learners));
    let publication = Publication {
        base,
        masters: &origin.masters,
        learners: &trained.learners,
        adapters: learnt.as_ref(),
        adapter_files: lora.zip(learnt.as_ref()).map(|(lora, own)| lora.files(job, own, pad_id)),
        rows: &trained.rows,
        reward,
        report: report.as_ref(),
        labels: start::labels(job, renderer.as_ref())?,
    };
    let architecture = match job.published {
        PublishedAs::Model => publication.fill(&draft)?,
        PublishedAs::Adapter => publication.fill_adapter(&draft)?,
    };
    let standing = draft.publish(Heading {
        kind: folder_kind(job.training),
        unit: job.unit.clone(),
        parent_sha256: job.parent_sha256.clone(),
        architecture,
        steps: trained.rows.len() as u64,
    })?;
    Ok(Outcome {
        standing,
        rows: trained.rows,
        first_step: trained.first_step,
        dropped: examples.dropped(),
        report,
    })
}

/// Begins to hold what a unit starts from, and is held to, against the manifests.
fn verifying(job: &TrainJob) -> Verifying {
    let of =
        |path: &Path, sha256: &str| ModelRef { path: path.to_owned(), sha256: sha256.to_owned() };
    let mut models = vec![of(&job.base, &job.base_sha256)];
    models.extend(job.stored.iter().map(|stored| of(&stored.reference, &stored.reference_sha256)));
    models.extend(job.adapter_base.iter().map(|base| of(&base.dir, &base.sha256)));
    models.sort_by(|one, other| one.path.cmp(&other.path));
    models.dedup();
    // In file mode nobody knows a sum.
    models.retain(|model| !model.sha256.is_empty());
    Known::default().begin(&models.iter().collect::<Vec<_>>(), Files::All)
}

/// What a reward model is worth on the preferences that were held out.
fn measured(
    job: &TrainJob,
    model: &Transformer,
    examples: &Examples,
    observer: &Observer<'_>,
) -> Result<Option<Report>, TrainError> {
    if job.training != Training::Reward {
        return Ok(None);
    }
    model.adapters().draw_none();
    let held_out = report::measure(model, &examples.held_out, observer.watch)?;
    Ok(Some(examples.report(held_out)))
}

fn train(
    job: &TrainJob,
    origin: &Origin,
    model: &Transformer,
    (trunk, examples): (Trunk, &Examples),
    observer: &Observer<'_>,
) -> Result<Trained, TrainError> {
    let settings = &job.settings;
    let learners = Learners::new(model, Loop::adam(settings), |name| {
        start::finer(origin, model.precision(), name)
    })?;
    let training = Loop {
        model,
        pairs: &examples.pairs,
        objective: match job.training {
            Training::Dpo => Objective::Dpo(DpoLoss {
                loss: settings.loss,
                beta: settings.beta,
                label_smoothing: settings.label_smoothing,
            }),
            Training::Sft | Training::Preference => Objective::Sft(&examples.blocks),
            Training::Reward => {
                Objective::Reward(RewardLoss { centring: settings.centring }, &examples.groups)
            }
        },
        settings,
        micro_batch: job.micro_batch,
        plan: BatchPlan {
            examples: examples.count(),
            batch: match job.training {
                Training::Sft | Training::Preference => settings.batch_sequences as usize,
                Training::Dpo | Training::Reward => settings.batch_pairs as usize,
            },
            epochs: u64::from(settings.epochs),
            order: job.order,
        },
        state: job.state.as_ref().map(|keeping| StatePlace {
            folder: keeping.folder.clone(),
            resume: keeping.resume,
            every_steps: keeping.every_steps,
            every_s: keeping.every_s,
            fingerprint: fingerprint(job, model, examples),
        }),
        trunk,
    };
    training.run(learners, observer)
}

fn open_origin(job: &TrainJob) -> Result<Origin, TrainError> {
    let ground = lora::ground(job)?;
    let base = ModelFolder::open(&ground.base)?;
    let base = match job.training {
        Training::Preference if base.kind() == ModelKind::PreferenceModel => base,
        Training::Dpo | Training::Sft | Training::Preference => base.require_policy()?,
        Training::Reward => base,
    };
    let layers = base.config.layers;
    if let Some(asked) = job.settings.trainable_layers.filter(|asked| *asked as usize > layers) {
        return Err(TrainError::TooManyLayers { asked, layers });
    }
    let lora = lora::open(job, &base, &ground)?;
    let masters = if lora.is_some() { Masters::none() } else { Masters::open(&base.dir)? };
    Ok(Origin { base, masters, lora })
}

/// What this unit has published already, before its row was written.
fn already_published(
    job: &TrainJob,
    dropped: Vec<(String, u64)>,
) -> Result<Option<Outcome>, TrainError> {
    if job.unit.is_empty() {
        return Ok(None);
    }
    let Some(standing) = checkpoint::published(&job.out)? else { return Ok(None) };
    let manifest = &standing.manifest;
    if manifest.unit != job.unit || manifest.parent_sha256 != job.parent_sha256 {
        return Err(checkpoint::CheckpointError::Exists { path: job.out.clone() }.into());
    }
    let path = job.out.join(STEPS);
    let unreadable = |problem: String| TrainError::Job { path: path.clone(), problem };
    let text = std::fs::read_to_string(&path).map_err(|error| unreadable(error.to_string()))?;
    let rows: Vec<StepRow> = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .map_err(|error| unreadable(error.to_string()))?;
    let first_step = rows.len() as u64 + 1;
    Ok(Some(Outcome { standing, rows, first_step, dropped, report: None }))
}

fn folder_kind(training: Training) -> FolderKind {
    match training {
        Training::Dpo | Training::Sft => FolderKind::Policy,
        Training::Reward => FolderKind::RewardModel,
        Training::Preference => FolderKind::PreferenceModel,
    }
}

/// Whether the reference is the model that training starts from, to the bit: then it is not
/// loaded twice, and its frozen states serve the training.
fn own_reference(job: &TrainJob, origin: &Origin) -> bool {
    let PairSource::Text { reference: Some(reference), .. } = &job.pairs else { return false };
    // Masters make the starting policy finer than the published reference.
    same_folder(reference, &origin.base.dir) && origin.masters.are_none()
}

/// Whether two paths lead to the same folder.
pub(super) fn same_folder(one: &Path, two: &Path) -> bool {
    match (one.canonicalize(), two.canonicalize()) {
        (Ok(one), Ok(two)) => one == two,
        _ => false,
    }
}

/// Computes the reference's log-probs with a model of its own, which is dropped at once.
fn fill_reference(
    job: &TrainJob,
    compute: Compute,
    origin: &Origin,
    pairs: &mut [TokenPair],
    observer: &Observer<'_>,
) -> Result<(), TrainError> {
    let base = &origin.base;
    let PairSource::Text { reference: Some(dir), .. } = &job.pairs else { return Ok(()) };
    let folder = ModelFolder::open(dir)?.require_policy()?;
    if folder.config.vocabulary != base.config.vocabulary {
        return Err(TrainError::Model(ModelError::Config {
            path: dir.join("config.json"),
            problem: format!(
                "the reference has {} ids, the policy {}",
                folder.config.vocabulary, base.config.vocabulary
            ),
            mend: "use the reference that the policy was trained from",
        }));
    }
    if own_reference(job, origin) {
        return Ok(());
    }
    let model = Transformer::load(&folder, &start::options(compute, Trainable::Nothing))?;
    reference::fill(&model, &mut Trunk::once(&model), pairs, observer)
}

/// All that shapes the steps: a state of anything else is never resumed.
fn fingerprint(job: &TrainJob, model: &Transformer, examples: &Examples) -> String {
    let order = format!("{:?} {}", job.order, job.seed);
    let compute = format!("{:?} {:?}", model.device(), model.precision());
    state::fingerprint(&[
        format!("{:?}", job.training).as_bytes(),
        job.settings.to_toml(job.training).as_bytes(),
        order.as_bytes(),
        compute.as_bytes(),
        job.unit.as_bytes(),
        job.parent_sha256.as_bytes(),
        job.base_sha256.as_bytes(),
        &examples.bytes(),
    ])
}
