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
    const SHIMS: [&str; 5] =
        ["device_memory.cpp", "in_place.cpp", "one_pass.cpp", "parallel.cpp", "product.cpp"];
    const HEADERS: [&str; 4] = ["gradient.h", "parallel.h", "processor.h", "rows.h"];
    for file in SHIMS.iter().chain(&HEADERS) {
        println!("cargo:rerun-if-changed={file}");
    }
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    let libraries = std::env::var_os("DEP_TCH_LIBTORCH_LIB").map(std::path::PathBuf::from);
    let headers =
        libraries.as_deref().and_then(std::path::Path::parent).map(|at| at.join("include"));
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        // Of libtorch's headers: most of the compiler's time.
        .debug(false)
        .includes(headers)
        .files(SHIMS)
        .compile("rlhfd_shims");
    kernels();
    println!("cargo:rustc-link-lib=c10");
}

/// Plain loops, once for each kind of processor; the shims choose among them. Fast in debug builds too: the
/// tests run whole models through them.
fn kernels() {
    let mut plain = kernel_build();
    plain.define("NAME(x)", "rlhfd_##x##_plain").file("rows.cpp").compile("rlhfd_rows_plain");
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() != Ok("x86_64") {
        return;
    }
    for (kind, lanes, flags) in
        [("avx2", "8", ["-mavx2", "-mfma"].as_slice()), ("avx512", "16", &["-mavx512f"])]
    {
        let mut build = kernel_build();
        for flag in flags {
            build.flag(flag);
        }
        build
            .define("NAME(x)", format!("rlhfd_##x##_{kind}").as_str())
            .define("DOT", format!("rlhfd_dot_{kind}").as_str())
            .define("LANES", lanes)
            .files(["rows.cpp", "dot.cpp"])
            .compile(&format!("rlhfd_kernels_{kind}"));
    }
}

fn kernel_build() -> cc::Build {
    for file in ["dot.cpp", "rows.cpp"] {
        println!("cargo:rerun-if-changed={file}");
    }
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(3);
    // Their results are looked at, never errno or the processor's flags.
    build.flag("-fno-math-errno").flag("-fno-trapping-math");
    build
}
