// The kernel of `product.cpp`: rows of x times rows of a weight, both read where they lie. Compiled once for
// each kind of processor (build.rs), with LANES f32 to a register and DOT the function's name.
//
// An element is the sum over LANES partial sums of its row and column alone: it has the same bits however many
// rows and threads there are. A tile of ROWS × COLUMNS elements stays in registers, so that each number
// that is loaded is used several times.
// Comes in: plain memory. Goes out: the product. May not enter: headers of libtorch, whose inline functions
// would be compiled for this kind of processor too.

#include <cstdint>

namespace {
typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#if LANES == 16
constexpr int ROWS = 5, COLUMNS = 5;
#else
constexpr int ROWS = 4, COLUMNS = 3;
#endif
// Columns whose weights stay in the second-level cache while all rows pass by.
constexpr int64_t BLOCK = 16 * COLUMNS;
// Numbers of a row that are taken at a time: those of a tile stay in the first-level cache.
constexpr int64_t DEPTH = 768;

typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));

// Quarters are added up first, then what is left crosswise.
inline float sum(const Lanes &lanes) {
  Four four = {};
  for (int part = 0; part < LANES / 4; ++part) four += reinterpret_cast<const Four *>(&lanes)[part];
  const Four crossed = four + __builtin_shufflevector(four, four, 2, 3, 0, 1);
  return crossed[0] + crossed[1];
}

template <int rows, int columns>
inline __attribute__((always_inline)) void tile(const float *x, const float *weight, float *y, int64_t inner,
                                                int64_t depth, int64_t outputs, bool first) {
  Lanes sums[rows][columns] = {};
  const int64_t whole = depth / LANES * LANES;
  for (int64_t at = 0; at < whole; at += LANES) {
    Lanes loaded[columns];
    for (int j = 0; j < columns; ++j) loaded[j] = *reinterpret_cast<const Lanes *>(weight + j * inner + at);
    for (int i = 0; i < rows; ++i) {
      const Lanes row = *reinterpret_cast<const Lanes *>(x + i * inner + at);
      for (int j = 0; j < columns; ++j) sums[i][j] += row * loaded[j];
    }
  }
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < columns; ++j) {
      float total = sum(sums[i][j]);
      for (int64_t at = whole; at < depth; ++at) total += x[i * inner + at] * weight[j * inner + at];
      float &out = y[i * outputs + j];
      out = first ? total : out + total;
    }
  }
}

template <int rows>
void tiles(const float *x, const float *weight, float *y, int64_t columns, int64_t inner, int64_t depth,
           int64_t outputs, bool first) {
  int64_t j = 0;
  for (; j + COLUMNS <= columns; j += COLUMNS) {
    tile<rows, COLUMNS>(x, weight + j * inner, y + j, inner, depth, outputs, first);
  }
  for (; j < columns; ++j) tile<rows, 1>(x, weight + j * inner, y + j, inner, depth, outputs, first);
}
} // namespace

// y[rows, outputs] = x[rows, inner] · weight[outputs, inner]ᵀ, the columns from `start` to `end` of it.
extern "C" void DOT(const float *x, const float *weight, float *y, int64_t rows, int64_t inner, int64_t outputs,
                    int64_t start, int64_t end) {
  for (int64_t block = start; block < end; block += BLOCK) {
    const int64_t columns = end - block < BLOCK ? end - block : BLOCK;
    for (int64_t from = 0; from == 0 || from < inner; from += DEPTH) {
      const int64_t depth = inner - from < DEPTH ? inner - from : DEPTH;
      const float *own = weight + block * inner + from;
      int64_t i = 0;
      for (; i + ROWS <= rows; i += ROWS) {
        tiles<ROWS>(x + i * inner + from, own, y + i * outputs + block, columns, inner, depth, outputs, from == 0);
      }
      for (; i < rows; ++i) {
        tiles<1>(x + i * inner + from, own, y + i * outputs + block, columns, inner, depth, outputs, from == 0);
      }
    }
  }
}
