//! Names that a client gives: prompt sets, training jobs, runs. They become parts of paths inside
//! the state folder, so they are held to letters that mean nothing to a file system.

use super::ErrorDetail;

/// The longest name.
pub const NAME_BYTES_MAX: usize = 64;

/// Whether `name` may name a `noun`: letters, digits, `.`, `_` and `-`, beginning with a letter or
/// a digit, at most [`NAME_BYTES_MAX`] bytes.
///
/// Errors: what is wrong with it, for the client.
pub fn check_name(noun: &str, name: &str) -> Result<(), ErrorDetail> {
    let mend = format!(
        "use 1 to {NAME_BYTES_MAX} letters, digits, `.`, `_` or `-`, and begin with a letter or a digit"
    );
    // The name itself is shown shortened and escaped: it may hold anything.
    let shown: String = name.chars().take(NAME_BYTES_MAX).collect();
    let wrong = |what: String| Err(ErrorDetail::new(what, format!("{shown:?}"), mend.clone()));
    if name.is_empty() {
        return wrong(format!("the name of the {noun} is empty"));
    }
    if name.len() > NAME_BYTES_MAX {
        return wrong(format!("the name of the {noun} has {} bytes", name.len()));
    }
    if !name.as_bytes()[0].is_ascii_alphanumeric() {
        return wrong(format!("the name of the {noun} begins with {:?}", first(name)));
    }
    match name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))) {
        Some(odd) => wrong(format!("the name of the {noun} holds {odd:?}")),
        None => Ok(()),
    }
}

fn first(name: &str) -> char {
    name.chars().next().unwrap_or(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_pass() {
        for name in ["main", "ultra-feedback_2.1", "0", &"x".repeat(64)] {
            assert!(check_name("prompt set", name).is_ok(), "{name}");
        }
    }

    #[test]
    fn nothing_that_could_leave_a_folder_passes() {
        for name in ["", ".", "..", "../x", "a/b", "a\\b", "a\0b", "-rf", "ä", &"x".repeat(65)] {
            let error = check_name("prompt set", name).unwrap_err();
            assert!(error.what.contains("prompt set"), "{error}");
        }
    }
}
