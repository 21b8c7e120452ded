//! Small C libraries that tests put in a system library's place.
//!
//! Comes in: a source in `tests/support`. Goes out: a shared library in the scene's folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::binaries::root;
use crate::scene::Scene;

/// Builds `tests/support/{source}` as `name` in the scene's folder; `None`, said aloud, without a C
/// compiler.
pub fn library(scene: &Scene, source: &str, name: &str) -> Option<PathBuf> {
    let library = scene.path(name);
    let source = root().join("tests/support").join(source);
    let mut compiler = Command::new("cc");
    compiler.args(["-std=c11", "-D_DEFAULT_SOURCE", "-Wall", "-Wextra", "-Werror", "-shared"]);
    compiler.arg("-fPIC").arg("-o").arg(&library).arg(&source);
    match compiler.status() {
        Ok(status) => assert!(status.success(), "{} does not compile", source.display()),
        Err(error) => {
            eprintln!("skipped: no C compiler `cc` for {} ({error})", source.display());
            return None;
        }
    }
    Some(library)
}

/// A variable of the daemons that the scene starts; its workers inherit it.
pub fn variable(scene: &mut Scene, name: &str, value: &Path) {
    scene.environment.push((name.to_owned(), value.to_string_lossy().into_owned()));
}
