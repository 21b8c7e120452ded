//! Fake GPUs for a scene: a small C library in NVML's place, driven by a file.
//!
//! Comes in: keys of `fake_nvml.c`. Goes out: a daemon that meets such GPUs, and computes on the CPU
//! where it takes a lease on one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::native;
use crate::scene::Scene;

/// The file that the library reads.
pub struct FakeGpus {
    state: PathBuf,
    lines: BTreeMap<String, String>,
}

impl FakeGpus {
    /// So many GPUs for the daemons that `scene` starts; `None`, said aloud, without a C compiler.
    pub fn of(scene: &mut Scene, count: usize) -> Option<Self> {
        let library = native::library(scene, "fake_nvml.c", "libnvidia-ml.so.1")?;
        let mut gpus = Self { state: scene.path("gpus"), lines: BTreeMap::new() };
        gpus.set("count", &count.to_string());
        native::variable(scene, "RLHFD_TEST_NVML", &library);
        native::variable(scene, "FAKE_NVML_STATE", &gpus.state);
        native::variable(scene, "RLHFD_TEST_GPU_LEASES_ON_CPU", Path::new("1"));
        Some(gpus)
    }

    /// From now on the library says this.
    pub fn set(&mut self, key: &str, value: &str) {
        self.lines.insert(key.to_owned(), value.to_owned());
        self.write();
    }

    /// From now on it says nothing special of this.
    pub fn unset(&mut self, key: &str) {
        self.lines.remove(key);
        self.write();
    }

    fn write(&self) {
        let text: String =
            self.lines.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
        let aside = self.state.with_extension("new");
        // Renamed, so that no call reads half of it.
        fs::write(&aside, text).and_then(|()| fs::rename(&aside, &self.state)).expect("the file");
    }
}
