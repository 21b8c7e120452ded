// Work of ours on libtorch's own threads: a second pool would fight the first one, whose idle threads spin, for
// the same cores.

#pragma once
#include <cstdint>

// Does `pieces` of work, in runs of at least `least` pieces, and returns when all are done. Which thread does
// which follows from the two numbers and from libtorch's number of threads. `task` may not throw.
void in_parallel(int64_t pieces, int64_t least, void (*task)(const void *context, int64_t first, int64_t end),
                 const void *context);

template <typename Task> void in_parallel(int64_t pieces, int64_t least, const Task &task) {
  in_parallel(
      pieces, least,
      [](const void *context, int64_t first, int64_t end) { (*static_cast<const Task *>(context))(first, end); },
      &task);
}
