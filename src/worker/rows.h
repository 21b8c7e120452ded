// What the passes of `rows.cpp` read and write: f32, row after row.

#pragma once
#include <cstdint>

// Rows whose slopes towards a norm's weight are added up together.
constexpr int64_t BAND = 64;

struct NormRows {
  const float *x, *weight;
  float *y, *r;
  int64_t width;
  float epsilon;
};

struct NormBack {
  const float *x, *weight, *r, *slope;
  float *towards_x, *sums;
  int64_t rows, width;
};

struct GatedRows {
  const float *gate, *up;
  float *y;
  int64_t width, stride;
};

struct GatedBack {
  const float *gate, *up, *slope;
  float *towards_gate, *towards_up;
  int64_t width;
};

struct RotatedRows {
  const float *x, *cos, *sin;
  float *y;
  int64_t heads, size, stride, positions;
  float sign;
};

// A group of queries over the keys and values of its row and key head.
struct AttendedRows {
  const float *query, *key, *value, *mask;
  float *y, *weights;
  int64_t heads, group, size, columns;
  // Between rows, and between the key heads of one, of keys and values; between rows of the mask.
  int64_t row_stride, head_stride, mask_stride;
  float scale;
};

#define ROWS_OF(kind)                                                                                                \
  void rlhfd_norm_##kind(const NormRows &rows, int64_t first, int64_t end);                                          \
  void rlhfd_norm_back_##kind(const NormBack &rows, int64_t first, int64_t end);                                     \
  void rlhfd_gated_##kind(const GatedRows &rows, int64_t first, int64_t end);                                        \
  void rlhfd_gated_back_##kind(const GatedBack &rows, int64_t first, int64_t end);                                   \
  void rlhfd_rotated_##kind(const RotatedRows &rows, int64_t first, int64_t end);                                    \
  void rlhfd_attended_##kind(const AttendedRows &rows, int64_t first, int64_t end);

extern "C" {
ROWS_OF(plain)
#if defined(__x86_64__)
ROWS_OF(avx2)
ROWS_OF(avx512)
#endif
}
