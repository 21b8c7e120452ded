// Which of the kinds of processor that the kernels are compiled for (build.rs) this one is.

#pragma once

enum class Processor { Plain, Avx2, Avx512 };

inline Processor processor() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return Processor::Avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Processor::Avx2;
#endif
  return Processor::Plain;
}
