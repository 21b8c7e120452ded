//! A worker that speaks the protocol without libtorch.

fn main() {}
