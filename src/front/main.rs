//! `rlhfd-worker`: what a user calls. It chooses a libtorch, sets the loader's path and becomes
//! `rlhfd-worker-torch`, which lies beside it; where the loader finds no libtorch, no line of that
//! program would run to say so.
//!
//! In: the arguments, passed on as they are. Two verbs are answered here, without libtorch:
//! `doctor` and `convert-gguf`. May not enter: tch, or anything that loads libtorch.

mod doctor;
mod gguf;
mod libtorch;
mod places;

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, anyhow, bail};

use crate::libtorch::{Choice, choose, look_for_gpu, warning};

const WORKER: &str = "rlhfd-worker-torch";
const OWN_VERBS: &str = "Answered without libtorch:
  rlhfd-worker doctor [--config FILE]          which libtorch is taken, and can the GPU be used
  rlhfd-worker convert-gguf FILE --out DIR     a Llama GGUF file as a Hugging Face folder";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("rlhfd-worker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[OsString]) -> Result<ExitCode> {
    let program = env::current_exe().context("the program's own place cannot be read")?;
    let origin = program.parent().unwrap_or(Path::new("/")).to_path_buf();
    match arguments.first().and_then(|verb| verb.to_str()) {
        Some("doctor") => run_doctor(&origin, &arguments[1..]),
        Some("convert-gguf") => convert_gguf(&arguments[1..]),
        verb => {
            if matches!(verb, None | Some("help" | "--help" | "-h")) {
                // A reader that went away (`| head`) is no reason to stop.
                let _told = writeln!(std::io::stdout(), "{OWN_VERBS}\n");
            }
            let choice = choose(&places::candidates(&origin, None)?)?;
            become_worker(&origin, &choice, arguments)
        }
    }
}

fn run_doctor(origin: &Path, arguments: &[OsString]) -> Result<ExitCode> {
    let config = match arguments {
        [] => None,
        [flag, file] if flag == "--config" => Some(PathBuf::from(file)),
        _ => bail!("doctor takes nothing but --config FILE"),
    };
    let choice = choose(&places::candidates(origin, config.as_deref())?);
    let report = doctor::report(&choice, &look_for_gpu());
    let mut out = std::io::stdout();
    write!(out, "{}", report.text).context("the report cannot be written")?;
    if let Some(text) = report.warning {
        eprintln!("WARNING: {text}");
    }
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn convert_gguf(arguments: &[OsString]) -> Result<ExitCode> {
    let [file, flag, out] = arguments else {
        bail!("usage: rlhfd-worker convert-gguf FILE --out DIR");
    };
    if flag != "--out" {
        bail!("usage: rlhfd-worker convert-gguf FILE --out DIR");
    }
    let mut told = 0;
    gguf::convert(Path::new(file), Path::new(out), &mut |done, of| {
        let tenths = done * 10 / of.max(1);
        if tenths > told {
            told = tenths;
            eprintln!("rlhfd-worker: {done} of {of} tensors");
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Replaces this process by the worker; returns only if that fails.
fn become_worker(origin: &Path, choice: &Choice, arguments: &[OsString]) -> Result<ExitCode> {
    if !asks_for_cpu(arguments)
        && let Some(text) = warning(choice, &look_for_gpu())
    {
        eprintln!("WARNING: {text}");
    }
    let worker = engine(origin)?;
    let error = Command::new(&worker)
        .args(arguments)
        .env("LD_LIBRARY_PATH", library_path(&choice.libraries, env::var_os("LD_LIBRARY_PATH"))?)
        .env("RLHFD_LIBTORCH", &choice.root)
        .envs(patience())
        .exec();
    Err(anyhow!(error).context(format!("{} cannot be executed", worker.display())))
}

/// The program that computes: beside this one where it was built, in lib/rlhfd where it is installed.
fn engine(origin: &Path) -> Result<PathBuf> {
    let places = [origin.join(WORKER), origin.join("../lib/rlhfd").join(WORKER)];
    let looked = format!("neither {} nor {} is there", places[0].display(), places[1].display());
    places.into_iter().find(|place| place.exists()).ok_or_else(|| {
        anyhow!(
            "{looked}: install rlhfd again (`make build` leaves both programs in target/release)"
        )
    })
}

/// Lets the worker's idle threads sleep soon, unless the user has chosen how they wait: spinning
/// ones keep a busy machine from the work that they wait for. The worker would set it itself, by
/// executing itself a second time.
fn patience() -> Option<(&'static str, &'static str)> {
    let chosen = ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"];
    (!chosen.iter().any(|name| env::var_os(name).is_some())).then_some(("GOMP_SPINCOUNT", "20000"))
}

/// Our folder first, then what the user had.
fn library_path(libraries: &Path, before: Option<OsString>) -> Result<OsString> {
    let before = before.filter(|value| !value.is_empty());
    let parts = std::iter::once(libraries.to_path_buf())
        .chain(before.iter().flat_map(|value| env::split_paths(value).collect::<Vec<_>>()));
    env::join_paths(parts).with_context(|| {
        format!(
            "{} has a colon in its name, which the loader cannot take: move libtorch",
            libraries.display()
        )
    })
}

fn asks_for_cpu(arguments: &[OsString]) -> bool {
    let cpu = |pair: &[OsString]| pair[0] == "--device" && pair[1] == "cpu";
    arguments.windows(2).any(cpu) || arguments.iter().any(|a| a == OsStr::new("--device=cpu"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_libraries_come_before_the_users() {
        let path = |before: Option<&str>| {
            library_path(Path::new("/t/lib"), before.map(OsString::from)).unwrap()
        };
        assert_eq!(path(None), "/t/lib");
        assert_eq!(path(Some("")), "/t/lib");
        assert_eq!(path(Some("/a:/b")), "/t/lib:/a:/b");
        assert!(library_path(Path::new("/t:x/lib"), None).is_err());
    }

    #[test]
    fn the_engine_lies_beside_it_or_where_an_installation_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let (bin, library) = (folder.path().join("bin"), folder.path().join("lib/rlhfd"));
        for made in [&bin, &library] {
            std::fs::create_dir_all(made).unwrap();
        }
        let told = engine(&bin).unwrap_err().to_string();
        assert!(told.contains("bin/rlhfd-worker-torch") && told.contains("install"), "{told}");
        std::fs::write(library.join(WORKER), "").unwrap();
        assert!(engine(&bin).unwrap().ends_with("lib/rlhfd/rlhfd-worker-torch"));
        std::fs::write(bin.join(WORKER), "").unwrap();
        assert!(engine(&bin).unwrap().ends_with("bin/rlhfd-worker-torch"));
    }

    #[test]
    fn a_run_on_cpu_is_known_by_both_spellings() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert!(asks_for_cpu(&words("generate --device cpu")));
        assert!(asks_for_cpu(&words("generate --device=cpu")));
        assert!(!asks_for_cpu(&words("generate --device auto --model cpu")));
    }
}
