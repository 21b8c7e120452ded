//! `rlhfd-worker doctor`: which libtorch is taken and why, and whether the GPU can be used.
//!
//! In: the choice (or its failure) and what the machine has. Out: text, and whether all is well.
//! Must work where no libtorch is, so nothing is loaded.

use std::fmt::Write;

use crate::libtorch::{Build, Choice, ChoiceError, Gpu, VERSION, warning};

/// What is printed, and whether anything is wrong.
pub struct Report {
    pub text: String,
    pub warning: Option<String>,
    pub ok: bool,
}

/// Looks at the choice and the machine.
pub fn report(choice: &Result<Choice, ChoiceError>, gpu: &Gpu) -> Report {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a String does not fail.
        let _never = writeln!(text, "{name:<10}{value}");
    };
    let driver = match (&gpu.driver, gpu.present) {
        (Some(version), _) => version.clone(),
        (None, true) => {
            "of unknown version (/proc/driver/nvidia/version is not readable)".to_owned()
        }
        (None, false) => "none".to_owned(),
    };
    let mut told = None;
    match choice {
        Ok(choice) => {
            line("libtorch", &choice.root.display().to_string());
            line("chosen by", &choice.source.to_string());
            let version = choice.version.as_deref().unwrap_or("not stated there");
            line("version", version);
            line("build", if choice.build == Build::Cuda { "CUDA 13" } else { "CPU only" });
            told = warning(choice, gpu).or_else(|| other_version(choice));
        }
        Err(error) => line("libtorch", &error.to_string()),
    }
    line("GPU", if gpu.present { "NVIDIA" } else { "none" });
    line("driver", &driver);
    if let (Ok(choice), None) = (choice, &told) {
        let gpu_used = gpu.present && choice.build == Build::Cuda;
        line("device", if gpu_used { "cuda:0 (auto)" } else { "cpu (auto)" });
    }
    Report { ok: choice.is_ok() && told.is_none(), text, warning: told }
}

fn other_version(choice: &Choice) -> Option<String> {
    let stated = choice.version.as_ref()?;
    (!stated.starts_with(VERSION)).then(|| {
        format!(
            "the libtorch in {} is {stated}, the worker was built for {VERSION}; take that version",
            choice.root.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libtorch::Source;

    fn choice(version: &str) -> Result<Choice, ChoiceError> {
        Ok(Choice {
            root: "/opt/libtorch".into(),
            libraries: "/opt/libtorch/lib".into(),
            source: Source::Environment,
            build: Build::Cuda,
            version: Some(version.to_owned()),
        })
    }

    #[test]
    fn it_names_the_folder_the_reason_and_the_build() {
        let gpu = Gpu { present: true, driver: Some("580.65.06".to_owned()) };
        let report = report(&choice("2.11.0"), &gpu);
        for part in ["/opt/libtorch", "RLHFD_LIBTORCH", "CUDA 13", "580.65.06", "cuda:0"] {
            assert!(report.text.contains(part), "{part} is missing in {}", report.text);
        }
        assert!(report.ok);
    }

    #[test]
    fn an_old_driver_or_another_version_is_not_well() {
        let old = Gpu { present: true, driver: Some("550.54.14".to_owned()) };
        let told = report(&choice("2.11.0"), &old);
        assert!(!told.ok && told.warning.is_some_and(|w| w.contains("580")));
        assert!(!told.text.contains("device"));
        let none = Gpu { present: false, driver: None };
        assert!(!report(&choice("2.9.1"), &none).ok);
        let nowhere = Err(ChoiceError::Nowhere { looked: "/a".to_owned() });
        let told = report(&nowhere, &none);
        assert!(!told.ok && told.text.contains("make setup"));
    }
}
