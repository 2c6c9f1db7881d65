// Attention over bfloat16 on the processor's matrix unit: as in sequence_attention.cpp, but products are of bfloat16 (the weights and
// the gradients of scores are rounded to it, as PyTorch's own attention rounds them), summed in float32.

#pragma once

#include "amx.h"
#include "attention_rows.h"

#ifdef FROSTLINE_AMX

#include <algorithm>
#include <cstring>

namespace {

constexpr int QUERIES = 2 * TILE;  // at a time; keys and features are padded to as many, since products are that deep

// Pieces of one thread's scratch
struct Room {
  float* left;

  template <class T>
  T* take(int64_t rows, int64_t columns) {
    T* taken = reinterpret_cast<T*>(left);
    left += padded((rows * columns * int64_t(sizeof(T)) + 3) / 4);
    return taken;
  }
};

// How the keys of a sequence lie
struct Padded {
  int64_t features, keys, row;  // row: of a matrix whose columns are keys

  Padded(int64_t length, int64_t size) : features(padded(size, QUERIES)), keys(padded(length, QUERIES)), row(spaced(keys)) {}
};

// Floats that `forward` takes, or `backward`
inline int64_t amx_room(int64_t length, int64_t size, bool gradient) {
  const Padded by(length, size);
  const int64_t matrix = by.features * by.row, blocks = QUERIES * (by.features + by.row);
  return gradient ? 4 * matrix + 4 * blocks : 2 * matrix + 2 * blocks;
}

// (rows, columns) with zeros after what there is
inline void copy_rows(const Operand<const Bf16>& from, int64_t token, int64_t head, int64_t count, int64_t size, int64_t rows, int64_t columns, Bf16* to) {
  for (int64_t r = 0; r < rows; r++) {
    const int64_t real = r < count ? size : 0;
    if (real) std::memcpy(to + r * columns, from.at(token + r, head), real * sizeof(Bf16));
    std::memset(to + r * columns + real, 0, (columns - real) * sizeof(Bf16));
  }
}

// Rows of floats, and zeros in the place of those that are not there, as bfloat16
inline void narrow_rows(const float* from, int64_t count, int64_t rows, int64_t columns, int64_t row, Bf16* to) {
  for (int64_t r = 0; r < count; r++) narrow(from + r * row, columns, to + r * row);
  for (int64_t r = count; r < rows; r++) std::memset(to + r * row, 0, columns * sizeof(Bf16));
}

// Floats (features, keys) into rows of keys
inline void put_across(const float* from, int64_t row, int64_t token, int64_t head, int64_t length, int64_t size, const Operand<Bf16>& to) {
  alignas(64) float tile[TILE * TILE];
  for (int64_t k = 0; k < length; k += TILE) {
    for (int64_t f = 0; f < size; f += TILE) {
      transpose_tile(reinterpret_cast<const Pair*>(from + f * row + k), row, reinterpret_cast<Pair*>(tile), TILE);
      for (int64_t r = 0; r < std::min<int64_t>(TILE, length - k); r++) {
        for (int64_t c = 0; c < std::min<int64_t>(TILE, size - f); c++) put(tile[r * TILE + c], to.at(token + k + r, head)[f + c]);
      }
    }
  }
}

inline void forward_amx(
    const Operand<const Bf16>& query, const Operand<const Bf16>& key, const Operand<const Bf16>& value, int64_t token, int64_t length, int64_t head,
    int64_t group, const Rule& rule, const Operand<Bf16>& output, float* logs, int64_t tokens, float* scratch) {
  const Tiles tiles;
  const Padded by(length, rule.size);
  const int64_t size = rule.size, features = by.features, row = by.row;
  Room room{scratch};
  Pair* keys = room.take<Pair>(features / 2, row);             // (features / 2, keys)
  Pair* values = room.take<Pair>(by.keys / 2, features);       // (keys / 2, features)
  Bf16* rows_of = room.take<Bf16>(by.keys, features);          // keys, then values
  Bf16* queries = room.take<Bf16>(QUERIES, features);
  float* mixed = room.take<float>(QUERIES, features);
  float* scores = room.take<float>(QUERIES, row);
  Bf16* weights = room.take<Bf16>(QUERIES, row);
  copy_rows(key, token, head, length, size, by.keys, features, rows_of);
  transpose(reinterpret_cast<Pair*>(rows_of), by.keys, features / 2, features / 2, keys, row);
  copy_rows(value, token, head, length, size, by.keys, features, rows_of);
  pair_rows(rows_of, by.keys, features, features, values, features);
  for (int64_t h = head * group; h < (head + 1) * group; h++) {
    for (int64_t start = 0; start < length; start += QUERIES) {
      const int64_t rows = std::min<int64_t>(QUERIES, length - start), all = padded(rows);
      const Seen seen(rule, start, rows, length, QUERIES);
      copy_rows(query, token + start, h, rows, size, all, features, queries);
      fetch<Bf16, 1>(output, token + start, h, rows, size);
      fetch_next<QUERIES>(query, token, h, h + 1 == (head + 1) * group, start, length, size);
      multiply(all, seen.width, features, queries, features, keys + seen.from, row, scores, row);
      float sums[QUERIES];
      for (int64_t r = 0; r < rows; r++) {
        const int64_t at = start + r;
        float most;
        to_weights(scores + r * row, seen, rule, rule.first(at), rule.end(at, length), row_bits(rule, token + at, h), most, sums[r]);
        logs[h * tokens + token + at] = most + std::log(sums[r]);
      }
      narrow_rows(scores, rows, all, seen.width, row, weights);
      multiply(all, features, seen.width, weights, row, values + seen.from / 2 * features, features, mixed, features);
      for (int64_t r = 0; r < rows; r++) {
        Bf16* out = output.at(token + start + r, h);
        const float factor = rule.keep() / sums[r];
        for (int64_t c = 0; c < size; c++) put(mixed[r * features + c] * factor, out[c]);
      }
    }
  }
}

inline void backward_amx(
    const Operand<const Bf16>& grad, const Operand<const Bf16>& query, const Operand<const Bf16>& key, const Operand<const Bf16>& value,
    const Operand<const Bf16>& output, const float* logs, int64_t tokens, int64_t token, int64_t length, int64_t head, int64_t group, const Rule& rule,
    const Operand<Bf16>& of_query, const Operand<Bf16>& of_key, const Operand<Bf16>& of_value, float* scratch) {
  const Tiles tiles;
  const Padded by(length, rule.size);
  const int64_t size = rule.size, features = by.features, row = by.row;
  Room room{scratch};
  Pair *keys_across = room.take<Pair>(features / 2, row), *values_across = room.take<Pair>(features / 2, row);
  Pair* keys = room.take<Pair>(by.keys / 2, features);
  float *key_slopes = room.take<float>(features, row), *value_slopes = room.take<float>(features, row);
  Bf16* rows_of = room.take<Bf16>(by.keys, features);  // values, then keys
  Bf16 *queries = room.take<Bf16>(QUERIES, features), *grads = room.take<Bf16>(QUERIES, features);
  Pair *queries_across = room.take<Pair>(features, TILE), *grads_across = room.take<Pair>(features, TILE);  // (features, QUERIES) numbers
  float *query_slopes = room.take<float>(QUERIES, features), *scores = room.take<float>(QUERIES, row), *slopes = room.take<float>(QUERIES, row);
  Bf16* narrowed = room.take<Bf16>(QUERIES, row);
  Pair* pairs = room.take<Pair>(TILE, std::max(row, features));
  copy_rows(value, token, head, length, size, by.keys, features, rows_of);
  transpose(reinterpret_cast<Pair*>(rows_of), by.keys, features / 2, features / 2, values_across, row);
  copy_rows(key, token, head, length, size, by.keys, features, rows_of);
  transpose(reinterpret_cast<Pair*>(rows_of), by.keys, features / 2, features / 2, keys_across, row);
  pair_rows(rows_of, by.keys, features, features, keys, features);
  std::memset(key_slopes, 0, features * row * sizeof(float));
  std::memset(value_slopes, 0, features * row * sizeof(float));
  for (int64_t h = head * group; h < (head + 1) * group; h++) {
    for (int64_t start = 0; start < length; start += QUERIES) {
      const int64_t rows = std::min<int64_t>(QUERIES, length - start), all = padded(rows);
      const Seen seen(rule, start, rows, length, QUERIES);
      copy_rows(query, token + start, h, rows, size, QUERIES, features, queries);
      copy_rows(grad, token + start, h, rows, size, QUERIES, features, grads);
      fetch(output, token + start, h, rows, size);
      fetch<Bf16, 1>(of_query, token + start, h, rows, size);
      const bool last_head = h + 1 == (head + 1) * group;
      fetch_next<QUERIES>(query, token, h, last_head, start, length, size);
      fetch_next<QUERIES>(grad, token, h, last_head, start, length, size);
      multiply(all, seen.width, features, queries, features, keys_across + seen.from, row, scores, row);
      multiply(all, seen.width, features, grads, features, values_across + seen.from, row, slopes, row);
      for (int64_t r = 0; r < rows; r++) {
        const int64_t at = start + r;
        const Bf16* out = output.at(token + at, h);
        float share = 0;
#pragma omp simd reduction(+ : share)
        for (int64_t c = 0; c < size; c++) share += number(grads[r * features + c]) * number(out[c]);
        to_slopes(
            scores + r * row, slopes + r * row, seen, rule, rule.first(at), rule.end(at, length), row_bits(rule, token + at, h),
            logs[h * tokens + token + at], share);
      }
      pair_rows(queries, QUERIES, features, features, pairs, features);
      transpose(pairs, TILE, features, features, queries_across, TILE);
      pair_rows(grads, QUERIES, features, features, pairs, features);
      transpose(pairs, TILE, features, features, grads_across, TILE);
      narrow_rows(scores, rows, QUERIES, seen.width, row, narrowed);
      pair_rows(narrowed, QUERIES, seen.width, row, pairs, row);
      multiply(features, seen.width, QUERIES, reinterpret_cast<Bf16*>(grads_across), QUERIES, pairs, row, value_slopes + seen.from, row, true);
      narrow_rows(slopes, rows, QUERIES, seen.width, row, narrowed);
      pair_rows(narrowed, QUERIES, seen.width, row, pairs, row);
      multiply(features, seen.width, QUERIES, reinterpret_cast<Bf16*>(queries_across), QUERIES, pairs, row, key_slopes + seen.from, row, true);
      multiply(all, features, seen.width, narrowed, row, keys + seen.from / 2 * features, features, query_slopes, features);
      for (int64_t r = 0; r < rows; r++) {
        Bf16* to = of_query.at(token + start + r, h);
        for (int64_t c = 0; c < size; c++) put(query_slopes[r * features + c], to[c]);
      }
    }
  }
  put_across(key_slopes, row, token, head, length, size, of_key);
  put_across(value_slopes, row, token, head, length, size, of_value);
}

}  // namespace

#endif
