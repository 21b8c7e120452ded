//! Prints the commented sample configuration: `configs/rlhfd.toml` is its output.
//!
//! In: nothing. Out: the text, on stdout.

use std::io::Write;

fn main() -> std::io::Result<()> {
    std::io::stdout().write_all(rlhfd_config::commented_toml().as_bytes())
}
