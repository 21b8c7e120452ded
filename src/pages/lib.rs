//! Man pages and shell completions, made by each program of its own command line.
//!
//! In: a command line's description. Out: `man/*.1` and `completions/*` in a folder, for `make man` and
//! with it for `make install` and the package. Written only where the first argument is [`WRITE`], which no
//! command line knows. May not enter: what any verb does.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Command;
use clap_complete::Shell;

/// The first argument that asks for the pages; the second is the folder.
pub const WRITE: &str = "--write-pages";

/// What stands in a program's own page below its options.
fn sections(program: &str) -> &'static str {
    match program {
        "rlhfd" => include_str!("rlhfd.roff"),
        "rlhfctl" => include_str!("rlhfctl.roff"),
        "rlhfd-worker" => include_str!("rlhfd-worker.roff"),
        _ => "",
    }
}

/// Writes the pages where the arguments (without the program's name) ask for it, and says with which
/// exit code to end then.
#[must_use]
pub fn write_if_asked(
    mut arguments: impl Iterator<Item = OsString>,
    command: impl FnOnce() -> Command,
) -> Option<ExitCode> {
    if arguments.next()? != WRITE {
        return None;
    }
    let Some(folder) = arguments.next().map(PathBuf::from) else {
        eprintln!("{WRITE} needs a folder: {WRITE} DIR");
        return Some(ExitCode::FAILURE);
    };
    match write(command(), &folder) {
        Ok(()) => Some(ExitCode::SUCCESS),
        Err(error) => {
            eprintln!("the pages cannot be written into {}: {error}", folder.display());
            Some(ExitCode::FAILURE)
        }
    }
}

/// Writes the pages of one program.
fn write(command: Command, folder: &Path) -> io::Result<()> {
    let (man, completions) = (folder.join("man"), folder.join("completions"));
    fs::create_dir_all(&man)?;
    fs::create_dir_all(&completions)?;
    let program = command.get_name().to_owned();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command.clone(), &program, &completions)?;
    }
    clap_mangen::generate_to(command, &man)?;
    let mut page = fs::OpenOptions::new().append(true).open(man.join(format!("{program}.1")))?;
    page.write_all(sections(&program).as_bytes())
}

#[cfg(test)]
mod tests {
    use clap::{Arg, ArgAction};

    use super::*;

    fn command() -> Command {
        let flag = Arg::new("deep").long("deep").action(ArgAction::SetTrue).help("Look deeper");
        let inner = Command::new("look").about("Looks").arg(flag);
        let outer = Command::new("things").about("All things").subcommand(inner);
        Command::new("rlhfd")
            .version("1.2")
            .subcommand(outer)
            .subcommand(Command::new("secret").hide(true))
    }

    fn words(words: &[&str]) -> impl Iterator<Item = OsString> {
        words.iter().map(OsString::from).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn every_verb_has_a_page_and_hidden_ones_have_none() {
        let folder = tempfile::tempdir().unwrap();
        let asked = [WRITE, folder.path().to_str().unwrap()];
        assert!(write_if_asked(words(&asked), command).is_some());
        let names = |below: &str| {
            let entries = fs::read_dir(folder.path().join(below)).unwrap();
            let mut names: Vec<_> =
                entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(names("man"), ["rlhfd-things-look.1", "rlhfd-things.1", "rlhfd.1"]);
        assert_eq!(names("completions"), ["_rlhfd", "rlhfd.bash", "rlhfd.fish"]);
        let page = |name: &str| fs::read_to_string(folder.path().join("man").join(name)).unwrap();
        assert!(page("rlhfd-things-look.1").contains("deep"));
        assert!(page("rlhfd.1").contains(".SH FILES"), "the program's own sections");
        assert!(!page("rlhfd.1").contains("secret"));
    }

    #[test]
    fn any_other_command_line_is_left_alone() {
        for words_asked in [&[][..], &["run"], &["run", WRITE, "folder"]] {
            assert!(write_if_asked(words(words_asked), command).is_none(), "{words_asked:?}");
        }
        assert!(write_if_asked(words(&[WRITE]), command).is_some(), "a folder is asked for");
    }
}
