// What is computed of each row of a matrix around a product in int8: one pass over memory instead of four, on all threads of PyTorch.
//
// Operation for operation as in int8_product.py, with the same roundings, so that the numbers are the same.

#include <cstdint>
#include <cstring>

#include "bfloat16.h"

namespace {

// Bits without the sign are in the order of the magnitudes, and NaN lies above them all: it is not lost.

inline float largest(const Bf16* x, int64_t count) {
  Bf16 found = 0;
  for (int64_t i = 0; i < count; i++) {
    const Bf16 bits = x[i] & 0x7fff;
    found = bits > found ? bits : found;
  }
  return number(found);
}

inline float largest(const float* x, int64_t count) {
  uint32_t found = 0;
  for (int64_t i = 0; i < count; i++) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    bits &= 0x7fffffff;
    found = bits > found ? bits : found;
  }
  float magnitude;
  std::memcpy(&magnitude, &found, sizeof magnitude);
  return magnitude;
}

template <class T>
void quantise(const T* __restrict x, int64_t rows, int64_t columns, float smallest, int half, uint8_t* __restrict steps, float* __restrict scales) {
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    const T* row = x + r * columns;
    uint8_t* out = steps + r * columns;
    const float magnitude = largest(row, columns);
    const float scale = (magnitude < smallest ? smallest : magnitude) / half;
    const float inverse = 1 / scale, middle = half + 1.5f;
    scales[r] = scale;
    for (int64_t c = 0; c < columns; c++) out[c] = uint8_t(int32_t(number(row[c]) * inverse + middle));
  }
}

template <class T>
void scale(T* __restrict y, int64_t rows, int64_t columns, const float* __restrict scales, const T* __restrict bias) {
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    T* row = y + r * columns;
    const float by = scales[r];
    for (int64_t c = 0; c < columns; c++) put(number(row[c]) * by, row[c]);
    if (bias) {
      for (int64_t c = 0; c < columns; c++) put(number(row[c]) + number(bias[c]), row[c]);
    }
  }
}

}  // namespace

extern "C" {

// steps (rows, columns) = trunc(x / scale + half + 1.5), scales (rows) = max |x| / half of each row
void frostline_quantise_float32(const float* x, int64_t rows, int64_t columns, float smallest, int half, uint8_t* steps, float* scales) {
  quantise(x, rows, columns, smallest, half, steps, scales);
}
void frostline_quantise_bfloat16(const Bf16* x, int64_t rows, int64_t columns, float smallest, int half, uint8_t* steps, float* scales) {
  quantise(x, rows, columns, smallest, half, steps, scales);
}

// y (rows, columns) = y · scale of its row, + bias (columns) where there is one
void frostline_scale_float32(float* y, int64_t rows, int64_t columns, const float* scales, const float* bias) {
  scale(y, rows, columns, scales, bias);
}
void frostline_scale_bfloat16(Bf16* y, int64_t rows, int64_t columns, const float* scales, const Bf16* bias) {
  scale(y, rows, columns, scales, bias);
}
}
