// Products of bfloat16 on the processor's matrix unit (Intel AMX), summed in float32, and the layouts that it asks for.
//
// The right side of a product lies in pairs: row i holds, for each column, the numbers of rows 2i and 2i + 1 side by side.

#pragma once

#if defined(__linux__) && defined(__AMX_BF16__) && defined(__AVX512BF16__)
#define FROSTLINE_AMX

#include <cstdint>

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bfloat16.h"

namespace {

using Pair = uint32_t;  // two numbers

constexpr int TILE = 16;  // rows of a tile, each of 16 float32 or 32 bfloat16

// Linux lends the unit to a process that asks for it
inline bool amx_allowed() {
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;
  static const bool allowed = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  return allowed;
}

// While one lives, its thread multiplies tiles
struct Tiles {
  struct alignas(64) Shape {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {TILE, TILE, TILE, TILE, TILE, TILE, TILE, TILE};
  };

  Tiles() {
    static const Shape shape;
    _tile_loadconfig(&shape);
  }
  ~Tiles() { _tile_release(); }
};

// c (R tiles, C tiles) = or += a b
template <int R, int C>
void multiply_block(int64_t depth, const Bf16* a, int64_t a_row, const Pair* b, int64_t b_row, float* c, int64_t c_row, bool add) {
  const int64_t a_bytes = a_row * 2, b_bytes = b_row * 4, c_bytes = c_row * 4;
  if (add) {
    _tile_loadd(0, c, c_bytes);
    if constexpr (C == 2) _tile_loadd(1, c + TILE, c_bytes);
    if constexpr (R == 2) _tile_loadd(2, c + TILE * c_row, c_bytes);
    if constexpr (R == 2 && C == 2) _tile_loadd(3, c + TILE * c_row + TILE, c_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < depth; k += 2 * TILE) {
    _tile_loadd(4, a + k, a_bytes);
    _tile_loadd(6, b + k / 2 * b_row, b_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (C == 2) {
      _tile_loadd(7, b + k / 2 * b_row + TILE, b_bytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (R == 2) {
      _tile_loadd(5, a + TILE * a_row + k, a_bytes);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (R == 2 && C == 2) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, c_bytes);
  if constexpr (C == 2) _tile_stored(1, c + TILE, c_bytes);
  if constexpr (R == 2) _tile_stored(2, c + TILE * c_row, c_bytes);
  if constexpr (R == 2 && C == 2) _tile_stored(3, c + TILE * c_row + TILE, c_bytes);
}

// c (rows, columns) = or += a (rows, depth) b (depth / 2, columns); rows and columns are multiples of TILE, depth of two
inline void multiply(
    int64_t rows, int64_t columns, int64_t depth, const Bf16* a, int64_t a_row, const Pair* b, int64_t b_row, float* c, int64_t c_row, bool add = false) {
  asm volatile("" ::: "memory");  // the compiler does not know that a tile is read from memory
  for (int64_t r = 0; r < rows; r += 2 * TILE) {
    for (int64_t j = 0; j < columns; j += 2 * TILE) {
      const bool two_rows = r + TILE < rows, two_columns = j + TILE < columns;
      const auto block = two_rows ? (two_columns ? multiply_block<2, 2> : multiply_block<2, 1>)
                                  : (two_columns ? multiply_block<1, 2> : multiply_block<1, 1>);
      block(depth, a + r * a_row, a_row, b + j, b_row, c + r * c_row + j, c_row, add);
    }
  }
  asm volatile("" ::: "memory");
}

// to (TILE, TILE) = from (TILE, TILE) transposed: pairs, then quarters of a vector, within rows, then those across them
inline void transpose_tile(const Pair* from, int64_t from_row, Pair* to, int64_t to_row) {
  __m512i row[TILE], half[TILE];
#pragma GCC unroll 16
  for (int i = 0; i < TILE; i++) row[i] = _mm512_loadu_si512(from + i * from_row);
#pragma GCC unroll 8
  for (int i = 0; i < TILE; i += 2) {
    half[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
    half[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < TILE; i += 4) {
    row[i] = _mm512_unpacklo_epi64(half[i], half[i + 2]);
    row[i + 1] = _mm512_unpackhi_epi64(half[i], half[i + 2]);
    row[i + 2] = _mm512_unpacklo_epi64(half[i + 1], half[i + 3]);
    row[i + 3] = _mm512_unpackhi_epi64(half[i + 1], half[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    const __m512i even = _mm512_shuffle_i32x4(row[j], row[4 + j], 0x88), odd = _mm512_shuffle_i32x4(row[j], row[4 + j], 0xdd);
    const __m512i later_even = _mm512_shuffle_i32x4(row[8 + j], row[12 + j], 0x88), later_odd = _mm512_shuffle_i32x4(row[8 + j], row[12 + j], 0xdd);
    _mm512_storeu_si512(to + j * to_row, _mm512_shuffle_i32x4(even, later_even, 0x88));
    _mm512_storeu_si512(to + (4 + j) * to_row, _mm512_shuffle_i32x4(odd, later_odd, 0x88));
    _mm512_storeu_si512(to + (8 + j) * to_row, _mm512_shuffle_i32x4(even, later_even, 0xdd));
    _mm512_storeu_si512(to + (12 + j) * to_row, _mm512_shuffle_i32x4(odd, later_odd, 0xdd));
  }
}

// to (columns, rows) = from (rows, columns); both multiples of TILE
inline void transpose(const Pair* from, int64_t rows, int64_t columns, int64_t from_row, Pair* to, int64_t to_row) {
  for (int64_t r = 0; r < rows; r += TILE) {
    for (int64_t c = 0; c < columns; c += TILE) transpose_tile(from + r * from_row + c, from_row, to + c * to_row + r, to_row);
  }
}

// to (rows / 2, columns) pairs of from (rows, columns); columns a multiple of TILE
inline void pair_rows(const Bf16* from, int64_t rows, int64_t columns, int64_t from_row, Pair* to, int64_t to_row) {
  for (int64_t r = 0; r < rows; r += 2) {
    for (int64_t c = 0; c < columns; c += TILE) {
      const __m256i *even = (const __m256i*)(from + r * from_row + c), *odd = (const __m256i*)(from + (r + 1) * from_row + c);
      const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(even)), high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(odd));
      _mm512_storeu_si512(to + r / 2 * to_row + c, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  }
}

// A row of float32 to the nearest bfloat16; count a multiple of TILE
inline void narrow(const float* from, int64_t count, Bf16* to) {
  for (int64_t i = 0; i < count; i += TILE) {
    const __m256bh numbers = _mm512_cvtneps_pbh(_mm512_loadu_ps(from + i));
    __builtin_memcpy(to + i, &numbers, sizeof numbers);
  }
}

}  // namespace

#endif
