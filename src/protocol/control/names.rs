//! Names that a client gives: prompt sets, training jobs, runs. They become parts of paths inside
//! the state folder, so they are held to the domain's rule before anything else is done.

use rlhfd_domain::Name;

use super::ErrorDetail;

/// Whether `name` may name a `noun`.
///
/// Errors: what is wrong with it, for the client.
pub fn check_name(noun: &'static str, name: &str) -> Result<Name, ErrorDetail> {
    Name::parse(name, noun).map_err(|_| {
        // It may hold anything, so it is shown shortened and escaped.
        let shown: String = name.chars().take(80).collect();
        ErrorDetail::new(
            format!("this is no name for a {noun}"),
            format!("{shown:?}"),
            "use 1 to 64 of a-z, 0-9, `.`, `_`, `-`, beginning with a letter or digit",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_name_is_shown_escaped() {
        let error = check_name("prompt set", "../\n").unwrap_err();
        assert_eq!(error.what, "this is no name for a prompt set");
        assert_eq!(error.place, r#""../\n""#);
        assert!(check_name("prompt set", "ultra-2.1").is_ok());
    }
}
