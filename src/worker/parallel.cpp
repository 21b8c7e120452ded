// libtorch's header of the same purpose runs on one thread only in a file that is compiled without OpenMP; with
// it, the file would want an OpenMP library of the linker's choice, and two of them have two pools. So the
// functions are asked of the one that libtorch has loaded, by the names that GCC's and LLVM's both have.

#include "parallel.h"

#include <algorithm>
#include <dlfcn.h>

#include <ATen/Parallel.h>

namespace {
struct OpenMp {
  void (*parallel)(void (*task)(void *), void *context, unsigned threads, unsigned flags);
  int (*thread)();
  int (*threads)();

  bool whole() const { return parallel != nullptr && thread != nullptr && threads != nullptr; }
};

template <typename Function> void find(Function &function, const char *name) {
  function = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
}

const OpenMp &open_mp() {
  static const OpenMp loaded = [] {
    OpenMp found;
    find(found.parallel, "GOMP_parallel");
    find(found.thread, "omp_get_thread_num");
    find(found.threads, "omp_get_num_threads");
    return found;
  }();
  return loaded;
}

struct Share {
  int64_t pieces;
  void (*task)(const void *context, int64_t first, int64_t end);
  const void *context;
};

void own_share(void *of) {
  const auto &share = *static_cast<const Share *>(of);
  const int64_t threads = open_mp().threads(), thread = open_mp().thread();
  const int64_t each = (share.pieces + threads - 1) / threads;
  const int64_t first = std::min(thread * each, share.pieces), end = std::min(first + each, share.pieces);
  if (first < end) share.task(share.context, first, end);
}
} // namespace

void in_parallel(int64_t pieces, int64_t least, void (*task)(const void *context, int64_t first, int64_t end),
                 const void *context) {
  if (pieces <= 0) return;
  const int64_t runs = (pieces + least - 1) / least;
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), runs);
  if (threads < 2 || at::in_parallel_region() || !open_mp().whole()) return task(context, 0, pieces);
  Share share{pieces, task, context};
  open_mp().parallel(own_share, &share, static_cast<unsigned>(threads), 0);
}
