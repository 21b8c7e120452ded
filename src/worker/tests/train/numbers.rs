//! The numbers of a step: not finite, against the named reference, the head's gradients by hand.

use rlhfd_config::Training;
use rlhfd_domain::Divergence;
use rlhfd_protocol::worker::FailureKind;
use rlhfd_worker::model::rotary::Tree;
use rlhfd_worker::model::{Devices, LoadOptions, ModelFolder, Precision, Trainable, Transformer};
use rlhfd_worker::train::TrainError;
use rlhfd_worker::train::head::{self, Room, Wanted};
use rlhfd_worker::train::job::{PairSource, TrainJob};
use tch::{Device, Kind, Tensor};

use crate::support::{model, run_quietly, small};

#[test]
fn a_step_that_is_not_finite_is_not_applied() {
    let dir = tempfile::tempdir().unwrap();
    let job =
        small(dir.path(), Training::Dpo, "tiny-tied", &["learning_rate=1e30", "max_grad_norm=0"]);
    let error = run_quietly(&job).unwrap_err();
    assert!(matches!(error, TrainError::NonFinite { .. }), "{error}");
    assert!(!job.out.exists());
}

/// How and at which step a small DPO training with these settings goes wrong.
fn diverged(words: &[&str]) -> (Divergence, u64) {
    let dir = tempfile::tempdir().unwrap();
    let job = small(dir.path(), Training::Dpo, "tiny-tied", words);
    let error = run_quietly(&job).unwrap_err();
    assert!(!job.out.exists(), "nothing is published of a training that went wrong");
    let TrainError::Diverged { divergence, step, .. } = &error else { unreachable!("{error}") };
    let (divergence, step) = (*divergence, *step);
    assert_eq!(error.failure_kind(), FailureKind::Diverged(divergence.into()));
    (divergence, step)
}

#[test]
fn a_training_that_goes_wrong_is_stopped_where_it_shows() {
    // The first step is taken before anything moved; an absurd rate shows in the next epoch's first.
    let absurd = ["learning_rate=1", "beta=1", "kl_max=0"];
    assert_eq!(diverged(&absurd), (Divergence::LossExploded, 4));
    // The loss alone would be no reason yet: the pairs of the second step are told apart.
    assert_eq!(diverged(&["learning_rate=1", "kl_max=100"]), (Divergence::KlBeyondLimit, 2));
    // Ten pairs, four a step, two epochs: six steps, none of which moves anything.
    let idle = ["learning_rate=1e-12", "stuck_steps=6"];
    assert_eq!(diverged(&idle), (Divergence::NothingLearnt, 6));
    // A margin of 1e-60 nats has no slope in f32.
    assert_eq!(diverged(&["beta=1e-60"]), (Divergence::NoGradient, 3));
}

#[test]
fn the_reference_is_the_one_that_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let one = small(dir.path(), Training::Dpo, "tiny-tied", &[]);
    run_quietly(&one).unwrap();
    let mut two = TrainJob { base: one.out.clone(), out: dir.path().join("two"), ..one.clone() };
    let first = run_quietly(&two).unwrap().rows[0].clone();
    assert!(first.margin.unwrap() > 0.05, "a trained policy stands off from the initial reference");
    let PairSource::Text { reference, .. } = &mut two.pairs else { unreachable!() };
    *reference = Some(two.base.clone());
    two.out = dir.path().join("three");
    let first = run_quietly(&two).unwrap().rows[0].clone();
    assert!(
        first.margin.unwrap().abs() < 1e-4 && (first.loss - std::f64::consts::LN_2).abs() < 1e-5
    );
}

/// The head's gradients by hand against libtorch's own autograd, with one chunk and with many, kept
/// and computed again.
#[test]
fn the_heads_gradients_are_autograds() {
    let options = LoadOptions {
        devices: Devices::one(Device::Cpu),
        precision: Precision::Float32,
        trainable: Trainable::Everything,
    };
    for base in ["tiny-tied", "tiny-untied"] {
        let folder = ModelFolder::open(&model(base)).unwrap();
        let model = Transformer::load(&folder, &options).unwrap();
        let width = i64::try_from(model.config.width).unwrap();
        tch::manual_seed(3);
        let hidden = Tensor::randn([11, width], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let targets = Tensor::arange(11, (Kind::Int64, Device::Cpu)) * 7;
        let coefficients = Tensor::linspace(-1.0, 2.0, 11, (Kind::Float, Device::Cpu));
        let best = model.logits(&hidden).argmax(-1, false);
        // Some targets are the likeliest ids, most are not.
        targets.narrow(0, 0, 4).copy_(&best.narrow(0, 0, 4));
        let logprobs = model.logits(&hidden).log_softmax(-1, Kind::Float);
        let logprobs = logprobs.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1);
        (&logprobs * &coefficients).sum(Kind::Float).backward();
        let name = head::weight_name(&model);
        let (_, weight) = model.parameters().iter().find(|(own, _)| own == name).unwrap();
        let one_chunk = Room { chunk_bytes: 1 << 30, kept_bytes: 1 << 30 };
        let many = Room { chunk_bytes: 4 * 3 * 320, kept_bytes: 1 << 30 };
        let again = Room { kept_bytes: 0, ..many };
        for room in [one_chunk, many, again] {
            let scored =
                head::forward_in(room, &model, (&hidden, &targets), Wanted::WeightGradient);
            assert!(scored.logprobs.allclose(&logprobs, 1e-5, 1e-5, false));
            assert!(scored.hits.equal(&best.eq_tensor(&targets)));
            let gradient = scored.hidden_gradient(&coefficients).unwrap();
            assert!(gradient.allclose(&hidden.grad(), 1e-4, 1e-5, false), "{base} {room:?}");
            let mut sum = weight.zeros_like().detach();
            scored.add_weight_gradient(&model, &coefficients, &mut sum);
            assert!(sum.allclose(&weight.grad(), 1e-4, 1e-5, false), "{base} {room:?}");
        }
    }
}

/// A shared prompt computed once gives each side what it gives alone, with and without a window.
#[test]
fn a_tree_of_sequences_gives_each_what_it_gives_alone() {
    for window in [None, Some(3), Some(6)] {
        let mut folder = ModelFolder::open(&model("tiny-tied")).unwrap();
        folder.config.windows = vec![window; folder.config.layers];
        let options = LoadOptions {
            devices: Devices::one(Device::Cpu),
            precision: Precision::Float32,
            trainable: Trainable::Nothing,
        };
        let model = Transformer::load(&folder, &options).unwrap();
        let (prompt, branches) =
            (vec![5_i64, 6, 7, 8], [vec![9_i64, 10], vec![11, 12, 13], vec![9]]);
        let other = [20_i64, 21];
        let mut ids = prompt.clone();
        ids.extend(branches.iter().flatten());
        ids.extend(other);
        let lengths = branches.iter().map(|branch| i64::try_from(branch.len()).unwrap()).collect();
        let trees = [Tree { trunk: 4, branches: lengths }, Tree::plain(2)];
        let rope = model.rope_packed(&trees);
        let mut x = model.embed(&Tensor::from_slice(&ids).unsqueeze(0));
        for block in model.blocks() {
            x = block.forward(&x, &rope);
        }
        let packed = model.final_norm(&x).squeeze_dim(0);
        let alone =
            |ids: &[i64]| model.hidden(&Tensor::from_slice(ids).unsqueeze(0)).squeeze_dim(0);
        let mut column = 4;
        for branch in &branches {
            let whole = alone(&[prompt.as_slice(), branch].concat());
            let length = i64::try_from(branch.len()).unwrap();
            let own = packed.narrow(0, column, length);
            assert!(own.allclose(&whole.narrow(0, 4, length), 1e-4, 1e-5, false), "{window:?}");
            column += length;
        }
        assert!(packed.narrow(0, column, 2).allclose(&alone(&other), 1e-4, 1e-5, false));
    }
}
