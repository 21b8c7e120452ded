//! Moving averages of policies, held to arithmetic on the tensors of both folders.

use std::path::Path;

use rlhfd_config::Training;
use rlhfd_protocol::worker::{ModelRef, Published};
use rlhfd_worker::checkpoint;
use rlhfd_worker::model::{Devices, LoadOptions, ModelFolder, Precision, Trainable, Transformer};
use rlhfd_worker::train::TrainError;
use rlhfd_worker::train::average::{Average, run};
use rlhfd_worker::train::publish::MASTERS;
use rlhfd_worker::watch::Watch;
use tch::{Device, Kind, Tensor};

use crate::support::{in_bf16, model, run_quietly, small, tensors};

fn reference(path: &Path) -> ModelRef {
    ModelRef { path: path.to_owned(), sha256: checkpoint::model_sum(path).unwrap() }
}

fn averaged(policy: &Path, before: &Path, out: &Path) -> Result<Published, TrainError> {
    let (policy, before) = (reference(policy), reference(before));
    let average = Average {
        policy: &policy,
        before: &before,
        decay: 0.25,
        out,
        unit: "average/reference-0001",
    };
    run(&average, &Watch::default())
}

/// 0.25 × before + 0.75 × policy in f64, rounded once to f32.
fn by_hand(policy: &Tensor, before: &Tensor) -> Tensor {
    let double = |tensor: &Tensor| tensor.to_kind(Kind::Double);
    (double(before) * 0.25 + double(policy) * 0.75).to_kind(Kind::Float)
}

fn farthest(a: &Tensor, b: &Tensor) -> f64 {
    (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).abs().max().double_value(&[])
}

#[test]
fn each_weight_is_the_average_of_both_and_the_folder_is_a_policy() {
    let dir = tempfile::tempdir().unwrap();
    run_quietly(&small(dir.path(), Training::Dpo, "tiny-tied", &[])).unwrap();
    let (policy, before) = (dir.path().join("out"), model("tiny-tied"));
    let out = dir.path().join("reference-0001");
    let first = averaged(&policy, &before, &out).unwrap();
    let file = "model.safetensors";
    let (own, other) = (tensors(&policy.join(file)), tensors(&before.join(file)));
    let mut moved = 0;
    for (name, found) in tensors(&out.join(file)) {
        let of = |all: &[(String, Tensor)]| {
            all.iter().find(|(known, _)| *known == name).unwrap().1.shallow_clone()
        };
        let (policy, before) = (of(&own), of(&other));
        assert!(farthest(&found, &by_hand(&policy, &before)) < 1e-7, "{name}");
        moved += i32::from(!found.equal(&policy) && !found.equal(&before));
    }
    assert!(moved > 0, "the training moved something");
    let options = LoadOptions {
        devices: Devices::one(Device::Cpu),
        precision: Precision::Float32,
        trainable: Trainable::Nothing,
    };
    let folder = ModelFolder::open(&out).unwrap().require_policy().unwrap();
    Transformer::load(&folder, &options).unwrap();
    let standing = checkpoint::verify(&out).unwrap();
    assert_eq!(standing.manifest.parent_sha256, checkpoint::model_sum(&policy).unwrap());

    // Done again it stands as it is, and made anew it is the same to the bit.
    assert_eq!(averaged(&policy, &before, &out).unwrap(), first);
    let again = dir.path().join("again");
    assert_eq!(averaged(&policy, &before, &again).unwrap().sha256, first.sha256);
    // Another's folder is never taken.
    let error = averaged(&before, &policy, &out).unwrap_err();
    assert!(error.to_string().contains("exists already"), "{error}");
}

#[test]
fn narrow_weights_are_averaged_by_their_masters() {
    let dir = tempfile::tempdir().unwrap();
    let mut job = small(dir.path(), Training::Dpo, "tiny-tied", &[]);
    job.base = in_bf16(dir.path(), "tiny-tied");
    run_quietly(&job).unwrap();
    let (policy, before) = (job.out.clone(), job.base.clone());
    let one = dir.path().join("one");
    averaged(&policy, &before, &one).unwrap();
    let (masters, stored) =
        (tensors(&policy.join(MASTERS)), tensors(&before.join("model.safetensors")));
    for (name, found) in tensors(&one.join(MASTERS)) {
        let of = |all: &[(String, Tensor)]| {
            all.iter().find(|(known, _)| *known == name).unwrap().1.shallow_clone()
        };
        // The initial policy has no masters: its weights are what they stand for.
        assert!(farthest(&found, &by_hand(&of(&masters), &of(&stored))) < 1e-7, "{name}");
        let narrow = tensors(&one.join("model.safetensors"));
        assert!(of(&narrow).equal(&found.to_kind(Kind::BFloat16)), "{name}");
    }
    // The next one goes on from the average's own masters.
    let two = dir.path().join("two");
    averaged(&policy, &one, &two).unwrap();
    let (own, last) = (tensors(&one.join(MASTERS)), tensors(&two.join(MASTERS)));
    for ((name, found), (_, before)) in last.iter().zip(&own) {
        let policy = &masters.iter().find(|(known, _)| known == name).unwrap().1;
        assert!(farthest(found, &by_hand(policy, before)) < 1e-7, "{name}");
    }
}

#[test]
fn models_of_different_shapes_have_no_average() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let error = averaged(&model("tiny-tied"), &model("tiny-untied"), &out).unwrap_err();
    assert!(error.to_string().contains("no average of two such models"), "{error}");
    assert!(!out.exists());
    assert!(averaged(&model("tiny-tied"), &model("tiny-reward"), &out).is_err());
}
