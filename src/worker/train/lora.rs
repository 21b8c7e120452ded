//! LoRA's part of a training: the base that adapters stand on, and adapters new or gone on with.
//!
//! In: a job. Out: its base's folder, and [`Lora`]. Adapters go on over iterations on one base, which
//! stays the initial policy: with the adapters off the model is the reference. A new adapter's
//! numbers are a function of the seed and the module's name. May not enter: steps, files' bytes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rlhfd_config::{LoraTargets, TrainSettings, Training};
use tch::{Device, Kind, Tensor};

use super::adapter_files::AdapterFiles;
use super::error::TrainError;
use super::job::{AdapterBase, PairSource, TrainJob, same_folder};
use super::learners::Learners;
use crate::checkpoint;
use crate::model::adapter::{DOWN, UP, linear_modules};
use crate::model::adapter_folder::{self, BaseNote};
use crate::model::{AdapterFolder, AdapterShape, Adapters, ModelFolder};
use crate::philox::Words;

/// What adapters stand on.
pub(super) struct Ground {
    /// The frozen base; without LoRA the model that goes on.
    pub(super) base: PathBuf,
    /// The adapter that goes on; None: a new one.
    adapter: Option<PathBuf>,
}

/// The adapters that learn.
pub(super) struct Lora {
    /// As they start.
    pub(super) adapters: Adapters,
    /// What they are made on.
    base: BaseNote,
}

/// Finds the base of a job's adapters. They go on from the model that the job starts with where that
/// holds adapters on this base; new ones are made where the two are the same folder.
///
/// # Errors
/// `NoBase` where the adapters were made on another base, or on one that nobody names.
pub(super) fn ground(job: &TrainJob) -> Result<Ground, TrainError> {
    let fresh = Ground { base: job.base.clone(), adapter: None };
    if job.settings.lora_rank == 0 {
        return Ok(fresh);
    }
    let held = adapter_folder::place_in(&job.base);
    match (&job.adapter_base, held) {
        (Some(base), _) if is_base(job, base) => Ok(fresh),
        (Some(base), Some(adapter)) => {
            if let Some(problem) = adapter_folder::misfit(&adapter, &base.dir, &base.sha256)? {
                return Err(no_base(job, problem));
            }
            Ok(Ground { base: base.dir.clone(), adapter: Some(adapter) })
        }
        (Some(base), None) => {
            let base = base.dir.display();
            Err(no_base(job, format!("it holds no adapter that could go on, on the base {base}")))
        }
        (None, None) => Ok(fresh),
        (None, Some(adapter)) => on_the_reference(job, adapter, fresh),
    }
}

/// Nobody names a base: the reference is tried. A reward model is made from a merged policy as from
/// any other.
fn on_the_reference(job: &TrainJob, adapter: PathBuf, fresh: Ground) -> Result<Ground, TrainError> {
    let merged = adapter != job.base;
    let reference = match &job.pairs {
        PairSource::Text { reference, .. } => reference.as_deref(),
        PairSource::Conversations { .. } | PairSource::Ids { .. } => None,
    };
    match reference {
        Some(reference) if same_folder(reference, &job.base) && merged => Ok(fresh),
        Some(reference) => match adapter_folder::misfit(&adapter, reference, "")? {
            None => Ok(Ground { base: reference.to_owned(), adapter: Some(adapter) }),
            Some(problem) => Err(no_base(job, problem)),
        },
        None if merged && job.training != Training::Dpo => Ok(fresh),
        None => Err(no_base(job, "it holds an adapter, but nobody says on which base".to_owned())),
    }
}

fn no_base(job: &TrainJob, problem: String) -> TrainError {
    TrainError::NoBase {
        path: job.base.clone(),
        problem,
        mend: "the base that the adapter was made on; or lora_rank = 0; or, for a new adapter on the \
               merged weights, the policy itself as the base (in the daemon: a new run that begins \
               with it)",
    }
}

/// Whether the job starts with the base itself.
fn is_base(job: &TrainJob, base: &AdapterBase) -> bool {
    let same_sum = !base.sha256.is_empty() && base.sha256 == job.base_sha256;
    same_sum || same_folder(&base.dir, &job.base)
}

/// The adapters of a job; None where it asks for none.
///
/// # Errors
/// `NoTarget`; `OtherAdapter` where the one that goes on has another shape; an unreadable adapter.
pub(super) fn open(
    job: &TrainJob,
    base: &ModelFolder,
    ground: &Ground,
) -> Result<Option<Lora>, TrainError> {
    let settings = &job.settings;
    if settings.lora_rank == 0 {
        return Ok(None);
    }
    let shape = AdapterShape {
        rank: settings.lora_rank,
        alpha: settings.lora_alpha,
        rank_stabilised: settings.lora_rs,
    };
    let modules = targeted(base, &settings.lora_targets)?;
    let (adapters, note) = match &ground.adapter {
        Some(dir) => {
            let found = AdapterFolder::open(dir, &base.config)?;
            if let Some(difference) = difference(&found.adapters, shape, &modules) {
                return Err(TrainError::OtherAdapter { path: dir.clone(), difference });
            }
            (found.adapters, found.base)
        }
        None => (drawn(shape, &modules, job.seed), None),
    };
    let base = match note {
        Some(note) => note,
        None => BaseNote { name: name_of(&base.dir), sha256: sum_of(job, ground)?, pad_id: None },
    };
    Ok(Some(Lora { adapters, base }))
}

impl Lora {
    /// The adapters as they are now.
    pub(super) fn learnt(&self, learners: &Learners) -> Adapters {
        let master = |name: &str| learners.find(name).map(|own| own.master.shallow_clone());
        let matrices = self.adapters.matrices.iter().map(|(name, start)| {
            (name.clone(), master(name).unwrap_or_else(|| start.shallow_clone()))
        });
        Adapters {
            shape: self.adapters.shape,
            matrices: matrices.collect(),
            score_head: master("score.weight"),
        }
    }

    /// What their files hold.
    pub(super) fn files<'a>(
        &self,
        job: &TrainJob,
        adapters: &'a Adapters,
        pad_id: Option<u32>,
    ) -> AdapterFiles<'a> {
        AdapterFiles {
            adapters,
            base: BaseNote { pad_id, ..self.base.clone() },
            targets: target_names(&job.settings, adapters),
            dropout: job.settings.lora_dropout,
        }
    }
}

/// The targets as peft's configuration has them.
fn target_names(settings: &TrainSettings, adapters: &Adapters) -> Vec<String> {
    match &settings.lora_targets {
        LoraTargets::Named(names) => names.clone(),
        LoraTargets::AllLinear => {
            let last = |module: &str| module.rsplit('.').next().unwrap_or(module).to_owned();
            adapters.modules().map(last).collect::<BTreeSet<_>>().into_iter().collect()
        }
    }
}

/// The modules that the targets name. Unlike peft, each target must match.
fn targeted(
    base: &ModelFolder,
    targets: &LoraTargets,
) -> Result<Vec<(String, [i64; 2])>, TrainError> {
    let mut modules = linear_modules(&base.config);
    let names: Vec<String> = modules.iter().map(|(module, _)| module.clone()).collect();
    if let Some(target) = targets.unmatched(&names) {
        let last = |module: &String| module.rsplit('.').next().unwrap_or_default().to_owned();
        let there: BTreeSet<String> = names.iter().map(last).collect();
        return Err(TrainError::NoTarget {
            target: target.to_owned(),
            dir: base.dir.clone(),
            modules: there.into_iter().collect::<Vec<_>>().join(", "),
        });
    }
    modules.retain(|(module, _)| targets.adapts(module));
    Ok(modules)
}

/// Where an adapter differs from what the settings ask for.
fn difference(
    found: &Adapters,
    wanted: AdapterShape,
    modules: &[(String, [i64; 2])],
) -> Option<String> {
    let own = found.shape;
    let apart = |key: &str, own: String, asked: String| {
        (own != asked).then(|| format!("{key} is {asked}, the adapter's is {own}"))
    };
    apart("lora_rank", own.rank.to_string(), wanted.rank.to_string())
        .or_else(|| apart("lora_alpha", own.alpha.to_string(), wanted.alpha.to_string()))
        .or_else(|| {
            let words = [own, wanted].map(|shape| shape.rank_stabilised.to_string());
            let [own, wanted] = words;
            apart("lora_rs", own, wanted)
        })
        .or_else(|| {
            let same = found.modules().eq(modules.iter().map(|(module, _)| module.as_str()));
            let adapted = found.modules().count();
            (!same).then(|| {
                format!("lora_targets name {} modules, it adapts {adapted} others", modules.len())
            })
        })
}

/// New adapters: the first matrix uniform in ±1/√inputs (Kaiming's bound with a = √5, as peft), the
/// second 0, so that the model begins as its base.
fn drawn(shape: AdapterShape, modules: &[(String, [i64; 2])], seed: u64) -> Adapters {
    let rank = i64::from(shape.rank);
    let mut matrices = Vec::new();
    for (module, [outputs, inputs]) in modules {
        let (down, up) = (format!("{module}{DOWN}"), format!("{module}{UP}"));
        let first = uniform(&down, [rank, *inputs], seed);
        let second = Tensor::zeros([*outputs, rank], (Kind::Float, Device::Cpu));
        matrices.extend([(down, first), (up, second)]);
    }
    Adapters { shape, matrices, score_head: None }
}

/// `[rows, inputs]` of numbers uniform in ±1/√inputs, f32.
fn uniform(name: &str, [rows, inputs]: [i64; 2], seed: u64) -> Tensor {
    let words = Words::named(&[b"lora", &seed.to_le_bytes(), name.as_bytes()]);
    #[expect(clippy::cast_precision_loss, reason = "a width is far below 2^52")]
    let bound = 1.0 / (inputs as f64).sqrt();
    let count = usize::try_from(rows * inputs).unwrap_or(0);
    let mut values = Vec::with_capacity(count + 3);
    for block in 0..count.div_ceil(4) {
        let four = words.block(u32::try_from(block).unwrap_or(u32::MAX));
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a drawn weight needs no more than f32"
        )]
        let number =
            |word: u32| ((2.0 * (f64::from(word) + 0.5) / 4_294_967_296.0 - 1.0) * bound) as f32;
        values.extend(four.map(number));
    }
    values.truncate(count);
    Tensor::from_slice(&values).view([rows, inputs])
}

fn sum_of(job: &TrainJob, ground: &Ground) -> Result<String, TrainError> {
    let named = job.adapter_base.as_ref().filter(|base| base.dir == ground.base);
    let known = match named {
        Some(base) => &base.sha256,
        None if ground.base == job.base => &job.base_sha256,
        None => "",
    };
    if known.is_empty() { Ok(checkpoint::model_sum(&ground.base)?) } else { Ok(known.to_owned()) }
}

/// The folder's own name, which says nothing of where it lies.
fn name_of(dir: &Path) -> String {
    let real = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    real.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_matrices_are_uniform_and_a_function_of_seed_and_name() {
        let one = uniform("a.lora_A.weight", [8, 400], 1);
        assert!(one.equal(&uniform("a.lora_A.weight", [8, 400], 1)));
        assert!(!one.equal(&uniform("a.lora_A.weight", [8, 400], 2)));
        assert!(!one.equal(&uniform("b.lora_A.weight", [8, 400], 1)));
        // Uniform in ±1/20: deviation 0.05/√3 = 0.02887; of the mean of 3200 numbers 0.00051.
        let most = one.abs().max().double_value(&[]);
        assert!(most <= 0.05 && most > 0.049, "{most}");
        let mean = one.mean(Kind::Double).double_value(&[]);
        assert!(mean.abs() < 0.00255, "{mean}");
        let deviation = one.std(false).double_value(&[]);
        assert!((deviation - 0.02887).abs() < 0.001, "{deviation}");
    }
}
