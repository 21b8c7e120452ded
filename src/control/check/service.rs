//! The configuration as the shipped system service sees it: closed off, but for what a drop-in opens.
//!
//! In: a configuration, the places that it names, the devices in use. Out: which of systemd/drop-ins are
//! needed, and what no drop-in would mend. May not enter: units' texts, asking the service manager.

use std::path::{Path, PathBuf};

use rlhfd_config::{CheckedConfig, JobConfig, ScorerModel};

use super::report::Report;
use super::system::Room;

/// What `ProtectHome=yes` hides.
const HOMES: [&str; 3] = ["/home", "/root", "/run/user"];
/// What `PrivateTmp=yes` replaces.
const TEMPORARY: [&str; 2] = ["/tmp", "/var/tmp"];
/// What the service may write.
const WRITABLE: [&str; 3] = ["/var/lib/rlhfd", "/var/cache/rlhfd", "/run/rlhfd"];

/// Tells what the service needs beside its unit.
pub(super) fn drop_ins(config: &CheckedConfig, devices: &[Room], report: &mut Report) {
    let read = read_places(config);
    let mut needed = false;
    let hidden: Vec<String> =
        read.iter().filter(|(_, path)| lies_in(path, &HOMES)).map(told).collect();
    if !hidden.is_empty() {
        needed = true;
        report.warn("service", format!("{}: {}", install("home-models"), hidden.join(", ")));
    }
    let cuda = devices.iter().filter(|room| room.is_cuda).count();
    if cuda > 1 {
        needed = true;
        report.warn("service", format!("{}: {cuda} GPUs are used", install("multi-gpu")));
    }
    if !needed {
        report.well(
            "service",
            "no drop-in is needed: it reads no home folder, asks no network".into(),
        );
    }
    for (what, path) in read.iter().filter(|(_, path)| lies_in(path, &TEMPORARY)) {
        report.bad(
            "service",
            format!(
                "{what} lies at {}, and the service has a temporary folder of its own: move it to \
                 /var/lib/rlhfd",
                path.display()
            ),
        );
    }
    let socket = config.control.readers_socket.as_ref().map(|place| &place.path);
    if let Some(path) = socket.filter(|path| !lies_in(path, &WRITABLE)) {
        report.bad(
            "service",
            format!(
                "[control] readers_socket is {}, where the service may not write: put it below \
                 /run/rlhfd",
                path.display()
            ),
        );
    }
}

/// How a drop-in is put in place.
fn install(name: &str) -> String {
    format!("it needs {name}.conf of systemd/drop-ins in /etc/systemd/system/rlhfd.service.d/")
}

fn told((what, path): &(String, PathBuf)) -> String {
    format!("{what} lies at {}", path.display())
}

/// Whether a place, or where its links lead, is below one of these.
fn lies_in(path: &Path, folders: &[&str]) -> bool {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    folders.iter().any(|folder| path.starts_with(folder) || real.starts_with(folder))
}

/// All that the configuration names and the service reads.
fn read_places(config: &CheckedConfig) -> Vec<(String, PathBuf)> {
    let mut places = vec![("[run] policy".to_owned(), config.run.policy.path.clone())];
    let mut add = |what: String, path: &Path| places.push((what, path.to_path_buf()));
    if let Some(reference) = &config.run.reference {
        add("[run] reference".to_owned(), &reference.path);
    }
    for scorer in &config.label.scorers {
        if let ScorerModel::Folder(place) = &scorer.model {
            add(format!("the scorer {}", scorer.name), &place.path);
        }
    }
    let jobs: [(&str, &JobConfig); 3] =
        [("sft", &config.sft), ("reward", &config.reward), ("preference", &config.preference)];
    for (name, job) in jobs {
        if let Some(base) = &job.base {
            add(format!("[{name}] base"), &base.path);
        }
        for file in &job.data.files {
            add(format!("[{name}] data"), &file.place.path);
        }
    }
    let worker = [("program", &config.worker.program), ("libtorch", &config.worker.libtorch)];
    for (name, place) in worker {
        if let Some(place) = place {
            add(format!("[worker] {name}"), &place.path);
        }
    }
    places
}
