//! Switches of libtorch that tch does not expose.
//!
//! In: nothing. Out: a process whose attention on a GPU is computed by kernels that need no plan. May
//! not enter: models, devices.

use std::ffi::c_void;

// Of the libtorch that this program is linked to, 2.11.0: `at::globalContext()` and
// `at::Context::setSDPUseCuDNN(bool)` (ATen/Context.h), by their names in the Itanium C++ ABI.
unsafe extern "C" {
    #[link_name = "_ZN2at13globalContextEv"]
    fn global_context() -> *mut c_void;
    #[link_name = "_ZN2at7Context14setSDPUseCuDNNEb"]
    fn set_cudnn_attention(context: *mut c_void, enabled: bool);
}

/// Leaves cuDNN's attention out of libtorch's choice.
///
/// It makes a plan for every new shape, and while responses are written the keys grow by one position
/// a step: in bf16 on an H200 a step of 64 rows took 119 ms, and 31 ms in f32, where cuDNN has none.
pub fn without_cudnn_attention() {
    // SAFETY: `globalContext` gives a reference to a static that lives as long as the process, and
    // the setter stores a bool in it; nothing else runs yet where this is called.
    unsafe { set_cudnn_attention(global_context(), false) };
}
