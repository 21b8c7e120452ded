//! Gives `rlhfd-worker-torch` a relative DT_RUNPATH, so that it finds libtorch where an installed
//! rlhfd keeps it, or in the project's own folder, without an absolute path in the binary.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Installed: bin/ beside lib/rlhfd/libtorch/. Project: target/release/ and target/debug/deps/.
    let places = [
        "$ORIGIN/../lib/rlhfd/libtorch",
        "$ORIGIN/../lib/rlhfd/libtorch/lib",
        "$ORIGIN/../../libtorch/lib",
        "$ORIGIN/../../../libtorch/lib",
    ];
    println!("cargo:rustc-link-arg=-Wl,--enable-new-dtags");
    for place in places {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{place}");
    }
}
