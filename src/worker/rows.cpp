// Row after row in one pass over memory: the root-mean-square norm, the gated MLP's product and the rotation of
// heads, forward and backward, and the attention of a decoding step. Compiled once for each kind of processor (build.rs); NAME gives the functions
// their names, so that the compiler may use that processor's registers in plain loops.
//
// No sum crosses a row but for the norm's weight, which is added up over BAND rows at a time: the bits do not
// depend on the number of threads.
// Comes in: plain memory. Goes out: the same. May not enter: headers of libtorch, whose inline functions would be
// compiled for this kind of processor too.

#include <cmath>
#include <cstdint>

#include "rows.h"

namespace {
// e^x to 2 units in the last place, without a branch: x = n·ln 2 + r, a polynomial in r (Cephes' expf), and n
// into the exponent. Below and above what f32 holds it stays at the border.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  const float shifted = x * 1.44269504f + 12582912.0f; // 1.5 · 2^23: rounds to a whole number
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  union {
    int32_t bits;
    float power;
  } scale = {(static_cast<int32_t>(n) + 127) << 23};
  return p * scale.power;
}

// Σ a·b in 16 partial sums, then those in order.
inline float dot(const float *a, const float *b, int64_t width) {
  float parts[16] = {};
  const int64_t whole = width / 16 * 16;
  for (int64_t at = 0; at < whole; at += 16) {
    for (int i = 0; i < 16; ++i) parts[i] += a[at + i] * b[at + i];
  }
  for (int64_t at = whole; at < width; ++at) parts[0] += a[at] * b[at];
  float total = 0.0f;
  for (float part : parts) total += part;
  return total;
}

inline void add(float *__restrict y, float weight, const float *__restrict x, int64_t width) {
  for (int64_t i = 0; i < width; ++i) y[i] += weight * x[i];
}

inline void softmax(float *x, int64_t width) {
  float highest = x[0], total = 0.0f;
  for (int64_t i = 1; i < width; ++i) highest = x[i] > highest ? x[i] : highest;
  for (int64_t i = 0; i < width; ++i) x[i] = exponential(x[i] - highest);
  for (int64_t i = 0; i < width; ++i) total += x[i];
  for (int64_t i = 0; i < width; ++i) x[i] /= total;
}

// A head's halves are the two coordinates of its points.
inline void turn(const float *__restrict x, const float *__restrict cos, const float *__restrict sin,
                 float *__restrict y, int64_t half, float sign) {
  for (int64_t i = 0; i < half; ++i) y[i] = x[i] * cos[i] - x[half + i] * (sign * sin[i]);
  for (int64_t i = 0; i < half; ++i) y[half + i] = x[half + i] * cos[half + i] + x[i] * (sign * sin[half + i]);
}
} // namespace

extern "C" {
// y = x · r · weight with r = 1/√(mean x² + epsilon), which is kept.
void NAME(norm)(const NormRows &rows, int64_t first, int64_t end) {
  const int64_t width = rows.width;
  const float *__restrict weight = rows.weight;
  for (int64_t row = first; row < end; ++row) {
    const float *__restrict x = rows.x + row * width;
    float *__restrict y = rows.y + row * width;
    const float r = 1.0f / std::sqrt(dot(x, x, width) / static_cast<float>(width) + rows.epsilon);
    rows.r[row] = r;
    for (int64_t i = 0; i < width; ++i) y[i] = x[i] * r * weight[i];
  }
}

// With g = slope · weight: towards x, r·g − x·r³·mean(g·x); towards the weight, Σ slope·x·r, by bands of rows.
void NAME(norm_back)(const NormBack &rows, int64_t first, int64_t end) {
  const int64_t width = rows.width;
  const float *__restrict weight = rows.weight;
  for (int64_t band = first; band < end; ++band) {
    float *__restrict sums = rows.sums + band * width;
    for (int64_t i = 0; i < width; ++i) sums[i] = 0.0f;
    const int64_t last = (band + 1) * BAND < rows.rows ? (band + 1) * BAND : rows.rows;
    for (int64_t row = band * BAND; row < last; ++row) {
      const float *__restrict x = rows.x + row * width, *__restrict slope = rows.slope + row * width;
      float *__restrict towards = rows.towards_x + row * width;
      const float r = rows.r[row];
      for (int64_t i = 0; i < width; ++i) {
        sums[i] += slope[i] * (x[i] * r);
        towards[i] = slope[i] * weight[i];
      }
      const float pull = dot(towards, x, width) / static_cast<float>(width) * r * r * r;
      for (int64_t i = 0; i < width; ++i) towards[i] = towards[i] * r - x[i] * pull;
    }
  }
}

// silu(gate) · up. Rows of gate and up may lie apart by more than their width.
void NAME(gated)(const GatedRows &rows, int64_t first, int64_t end) {
  const int64_t width = rows.width;
  for (int64_t row = first; row < end; ++row) {
    const float *__restrict gate = rows.gate + row * rows.stride, *__restrict up = rows.up + row * rows.stride;
    float *__restrict y = rows.y + row * width;
    for (int64_t i = 0; i < width; ++i) y[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
  }
}

// With s = σ(gate): towards gate, slope·up·s·(1 + gate·(1 − s)); towards up, slope·gate·s.
void NAME(gated_back)(const GatedBack &rows, int64_t first, int64_t end) {
  const float *__restrict gates = rows.gate, *__restrict ups = rows.up, *__restrict slopes = rows.slope;
  float *__restrict towards_gate = rows.towards_gate, *__restrict towards_up = rows.towards_up;
  const int64_t last = end * rows.width;
  for (int64_t at = first * rows.width; at < last; ++at) {
    const float gate = gates[at], slope = slopes[at], s = 1.0f / (1.0f + exponential(-gate));
    towards_gate[at] = slope * ups[at] * s * (1.0f + gate * (1.0f - s));
    towards_up[at] = slope * gate * s;
  }
}

// Each head turned by its row's angles. `sign` −1 turns back.
void NAME(rotated)(const RotatedRows &rows, int64_t first, int64_t end) {
  const int64_t half = rows.size / 2;
  const float sign = rows.sign;
  for (int64_t row = first; row < end; ++row) {
    const int64_t place = row % rows.positions * rows.size;
    const float *cos = rows.cos + place, *sin = rows.sin + place;
    for (int64_t head = 0; head < rows.heads; ++head) {
      const float *x = rows.x + row * rows.stride + head * rows.size;
      turn(x, cos, sin, rows.y + (row * rows.heads + head) * rows.size, half, sign);
    }
  }
}

// Softmax of the scaled products of query and key, then the mean of the values by it: one piece is a key head of
// a row, with the queries of its group. Columns before the first one that the mask lets see are not read.
void NAME(attended)(const AttendedRows &rows, int64_t first, int64_t end) {
  const int64_t size = rows.size, columns = rows.columns;
  for (int64_t piece = first; piece < end; ++piece) {
    const int64_t row = piece / rows.heads, at = row * rows.row_stride + piece % rows.heads * rows.head_stride;
    const float *key = rows.key + at, *value = rows.value + at;
    const float *query = rows.query + piece * rows.group * size;
    float *y = rows.y + piece * rows.group * size, *weights = rows.weights + piece * rows.group * columns;
    int64_t begin = 0;
    if (rows.mask != nullptr) {
      while (begin + 1 < columns && rows.mask[row * rows.mask_stride + begin] < 0.0f) ++begin;
    }
    for (int64_t column = begin; column < columns; ++column) {
      for (int64_t own = 0; own < rows.group; ++own) {
        weights[own * columns + column] = rows.scale * dot(query + own * size, key + column * size, size);
      }
    }
    for (int64_t own = 0; own < rows.group; ++own) {
      softmax(weights + own * columns + begin, columns - begin);
      for (int64_t i = 0; i < size; ++i) y[own * size + i] = 0.0f;
    }
    for (int64_t column = begin; column < columns; ++column) {
      for (int64_t own = 0; own < rows.group; ++own) {
        add(y + own * size, weights[own * columns + column], value + column * size, size);
      }
    }
  }
}
}
