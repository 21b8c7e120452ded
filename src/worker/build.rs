//! Compiles the calls of libtorch that tch lacks, and gives `rlhfd-worker-torch` a relative DT_RUNPATH,
//! so that it finds libtorch where an installed rlhfd keeps it, or in the project's own folder, without an
//! absolute path in the binary.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    shims();
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

/// The headers lie beside the libraries that torch-sys links.
fn shims() {
    const SHIMS: [&str; 2] = ["device_memory.cpp", "in_place.cpp"];
    for shim in SHIMS {
        println!("cargo:rerun-if-changed={shim}");
    }
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    let libraries = std::env::var_os("DEP_TCH_LIBTORCH_LIB").map(std::path::PathBuf::from);
    let headers =
        libraries.as_deref().and_then(std::path::Path::parent).map(|at| at.join("include"));
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .includes(headers)
        .files(SHIMS)
        .compile("rlhfd_shims");
    println!("cargo:rustc-link-lib=c10");
}
