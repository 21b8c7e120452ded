//! Where the built programs lie: beside the test that runs, in the same profile.

use std::path::PathBuf;

/// The folder of the profile, `target/debug` as a rule.
pub fn profile_folder() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own place");
    let deps = test.parent().expect("a test lies in a folder");
    // Tests lie in `deps`, binaries beside that.
    if deps.ends_with("deps") {
        deps.parent().expect("deps has a parent").into()
    } else {
        deps.into()
    }
}

/// The path of a program, or the word what to do.
pub fn program(name: &str) -> PathBuf {
    let path = profile_folder().join(name);
    assert!(
        path.is_file(),
        "{name} is not built at {}: run `make test`, or `cargo build --workspace` first",
        path.display()
    );
    path
}

/// As [`program`], where a test can say that it was skipped without it.
pub fn program_if_built(name: &str) -> Option<PathBuf> {
    let path = profile_folder().join(name);
    path.is_file().then_some(path)
}

/// The root of the repository.
pub fn root() -> PathBuf {
    let tests = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("tests/ lies in the repository").into()
}
