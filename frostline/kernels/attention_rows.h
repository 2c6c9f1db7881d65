// Attention a row of scores at a time: where the operands lie, what a query sees, and what becomes of its scores.

#pragma once

#include <cmath>
#include <cstdint>

#include "bfloat16.h"
#include "exponential.h"

namespace {

constexpr int STEP = 16;  // keys and features are padded to this

inline int64_t padded(int64_t count, int64_t step = STEP) { return (count + step - 1) / step * step; }

// The length of a row of so many: an odd number of cache lines, since rows that lie a power of two apart push each other out of the cache
inline int64_t spaced(int64_t count) { return padded(count) | STEP; }

// A tensor (tokens, heads, size) whose last axis is contiguous
template <class T>
struct Operand {
  T* data;
  int64_t token, head;  // steps

  T* at(int64_t t, int64_t h) const { return data + t * token + h * head; }
};

struct Rule {
  int64_t size;    // of a head
  int64_t window;  // a token sees what is nearer; 0: all
  float scaling;
  int causal;
  uint64_t seed;
  uint32_t dropped;  // of 65536; 0: no dropout

  int64_t first(int64_t row) const { return window && row >= window ? row - window + 1 : 0; }
  int64_t end(int64_t row, int64_t length) const {
    if (causal) return row + 1;
    return window && row + window < length ? row + window : length;
  }
  float keep() const { return 65536.0f / float(65536 - dropped); }
};

// Ask for rows that are read or written soon: heads of a token lie too far apart for the processor to foresee the next
template <class T, int WRITE = 0>
inline void fetch(const Operand<T>& of, int64_t token, int64_t head, int64_t count, int64_t size) {
  constexpr int64_t LINE = 64 / sizeof(T);
  for (int64_t r = 0; r < count; r++) {
    for (int64_t c = 0; c < size; c += LINE) __builtin_prefetch(of.at(token + r, head) + c, WRITE);
  }
}

// Of a query's operand: the block after the one that begins at `start`, of this head or, where there is one, of the next
template <int BLOCK, class T>
inline void fetch_next(const Operand<T>& of, int64_t token, int64_t head, bool last_head, int64_t start, int64_t length, int64_t size) {
  const bool last = start + BLOCK >= length;
  const int64_t next = last ? 0 : start + BLOCK;
  if (!last || !last_head) fetch(of, token + next, head + last, length - next < BLOCK ? length - next : BLOCK, size);
}

// Random bits of a row of scores, and from them those of a score (finalisers of SplitMix64 and MurmurHash3)
inline uint32_t row_bits(const Rule& rule, int64_t token, int64_t head) {
  uint64_t x = rule.seed + 0x9E3779B97F4A7C15u * (uint64_t(token) * 65536u + uint64_t(head) + 1);
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return uint32_t((x ^ (x >> 31)) >> 16);
}

inline float kept(uint32_t bits, int64_t key, uint32_t dropped, float keep) {
  uint32_t x = bits ^ (uint32_t(key) * 0x9E3779B9u);
  x = (x ^ (x >> 16)) * 0x85EBCA6Bu;
  x = (x ^ (x >> 13)) * 0xC2B2AE35u;
  return ((x ^ (x >> 16)) >> 16) >= dropped ? keep : 0.0f;
}

// What a block of queries sees, padded
struct Seen {
  int64_t from, width;

  Seen(const Rule& rule, int64_t row, int64_t rows, int64_t length, int64_t step = STEP) {
    from = rule.first(row) / step * step;
    width = padded(rule.end(row + rows - 1, length), step) - from;
  }
};

void hide(float* scores, const Seen& seen, int64_t from, int64_t to, float value) {
  for (int64_t j = 0; j < from - seen.from; j++) scores[j] = value;
  for (int64_t j = to - seen.from; j < seen.width; j++) scores[j] = value;
}

// Scores become e^(score - largest), those that the row does not see zeros, and with dropout some more; returns the largest and the sum.
void to_weights(float* s, const Seen& seen, const Rule& rule, int64_t from, int64_t to, uint32_t bits, float& most, float& sum) {
  hide(s, seen, from, to, -INFINITY);
  float largest = -INFINITY, total = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t j = 0; j < seen.width; j++) largest = s[j] > largest ? s[j] : largest;
  most = largest *= rule.scaling;
#pragma omp simd reduction(+ : total)
  for (int64_t j = 0; j < seen.width; j++) {
    s[j] = exponential(s[j] * rule.scaling - largest);
    total += s[j];
  }
  sum = total;
  if (rule.dropped) {
    for (int64_t j = 0; j < seen.width; j++) s[j] *= kept(bits, seen.from + j, rule.dropped, 1.0f);
  }
}

// Scores become the weights that multiplied the values, and their gradients `d` those of the scores.
void to_slopes(float* s, float* d, const Seen& seen, const Rule& rule, int64_t from, int64_t to, uint32_t bits, float log_sum, float share) {
  const float keep = rule.keep();
  if (rule.dropped) {
    for (int64_t j = 0; j < seen.width; j++) {
      const float weight = exponential(s[j] * rule.scaling - log_sum), factor = kept(bits, seen.from + j, rule.dropped, keep);
      d[j] = weight * (factor * d[j] - share) * rule.scaling;
      s[j] = weight * factor;
    }
  } else {
    for (int64_t j = 0; j < seen.width; j++) {
      s[j] = exponential(s[j] * rule.scaling - log_sum);
      d[j] = s[j] * (d[j] - share) * rule.scaling;
    }
  }
  hide(s, seen, from, to, 0);
  hide(d, seen, from, to, 0);
}

}  // namespace
