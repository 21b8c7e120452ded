//! Tests of `checkpoint`: whole or absent, every damage seen, sums that depend on contents alone.

use super::*;

fn heading() -> Heading {
    Heading {
        kind: FolderKind::Policy,
        unit: "1/train".into(),
        parent_sha256: String::new(),
        architecture: "LlamaForCausalLM".into(),
        steps: 2,
    }
}

fn published(out: &Path) -> Standing {
    let draft = Draft::begin(out).unwrap();
    draft.write("config.json", b"{}").unwrap();
    draft.write("master/weights.safetensors", b"bytes").unwrap();
    draft.publish(heading()).unwrap()
}

#[test]
fn a_published_folder_verifies_and_its_sum_is_a_function_of_its_contents() {
    let dir = tempfile::tempdir().unwrap();
    let one = published(&dir.path().join("one"));
    let two = published(&dir.path().join("elsewhere/two"));
    assert_eq!(one, two);
    assert_eq!(verify(&dir.path().join("one")).unwrap(), one);
    let names: Vec<_> = one.manifest.files.iter().map(|f| f.path.as_str()).collect();
    assert_eq!(names, ["config.json", "master/weights.safetensors"]);
    // sha256 of the two bytes "{}".
    assert!(one.manifest.files[0].sha256.starts_with("44136fa355b3678a"));
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 2, "nothing is left beside the folders: {left:?}");
}

#[test]
fn until_publish_nothing_stands_under_the_name_and_a_dropped_draft_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let draft = Draft::begin(&out).unwrap();
    draft.write("a", b"half").unwrap();
    assert!(!out.exists());
    drop(draft);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn what_a_killed_attempt_left_does_not_get_in() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let killed = Draft::begin(&out).unwrap();
    killed.write("stale", b"half").unwrap();
    std::mem::forget(killed);
    let standing = published(&out);
    assert!(standing.manifest.files.iter().all(|file| file.path != "stale"));
    assert!(!out.join("stale").exists());
}

#[test]
fn a_place_that_is_taken_is_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    published(&out);
    assert!(matches!(Draft::begin(&out), Err(CheckpointError::Exists { .. })));
    verify(&out).unwrap();
    fs::write(dir.path().join("file"), b"mine").unwrap();
    assert!(Draft::begin(&dir.path().join("file")).is_err());
    assert!(matches!(Draft::begin(Path::new("/")), Err(CheckpointError::NoName { .. })));
}

#[test]
fn every_kind_of_damage_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    type Damage = (&'static str, fn(&Path));
    let damages: [Damage; 6] = [
        ("changed", |out| fs::write(out.join("config.json"), b"[]").unwrap()),
        ("cut", |out| fs::write(out.join("config.json"), b"{").unwrap()),
        ("gone", |out| fs::remove_file(out.join("config.json")).unwrap()),
        ("no manifest", |out| fs::remove_file(out.join(MANIFEST)).unwrap()),
        ("no JSON", |out| fs::write(out.join(MANIFEST), b"?").unwrap()),
        ("leads out", |out| {
            let text = fs::read_to_string(out.join(MANIFEST)).unwrap();
            fs::write(out.join(MANIFEST), text.replace("config.json", "../x")).unwrap();
        }),
    ];
    for (name, damage) in damages {
        let out = dir.path().join(name);
        published(&out);
        damage(&out);
        assert!(verify(&out).is_err(), "{name}");
    }
}

#[test]
fn a_manifest_holds_neither_place_nor_time() {
    let dir = tempfile::tempdir().unwrap();
    published(&dir.path().join("out"));
    let text = fs::read_to_string(dir.path().join("out").join(MANIFEST)).unwrap();
    assert!(!text.contains(dir.path().to_str().unwrap()));
    assert!(!text.contains("time") && !text.contains("date"), "{text}");
}

#[test]
fn a_full_disk_is_told_from_a_missing_folder() {
    let io = |code| CheckpointError::Io {
        path: "x".into(),
        action: "written",
        source: io::Error::from_raw_os_error(code),
    };
    // 28 ENOSPC, 30 EROFS, 5 EIO, 122 EDQUOT; 2 ENOENT, 13 EACCES.
    assert!([28, 30, 5, 122].into_iter().all(|code| io(code).is_disk()));
    assert!(![2, 13].into_iter().any(|code| io(code).is_disk()));
}
