// Attention over sequences that lie end to end, and its gradient: scores of a few queries at a time, from numbers that stay in the
// processor's cache, with no padding, no mask in memory and, of dropout, nothing but a seed.
//
// Products, exponentials and sums are in float32; of bfloat16, where the processor has a unit for it, only sums and exponentials
// (attention_amx.h). A thread takes one sequence and one head of keys at a time, with all heads of queries that belong to it.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include <omp.h>

#include "attention_amx.h"
#include "attention_rows.h"

namespace {

#ifdef __AVX512F__
constexpr int WIDTH = 16, ROWS = 8;
#else
constexpr int WIDTH = 8, ROWS = 4;
#endif
constexpr int BLOCK = 16;  // queries at a time

typedef float Vector __attribute__((vector_size(WIDTH * sizeof(float))));

// c (R, V vectors) = or += a (R, depth) b (depth, V vectors)
template <int R, int V>
void tile(int64_t depth, const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t b_row, float* c, int64_t c_row, bool add) {
  Vector sums[R][V] = {};
  for (int64_t k = 0; k < depth; k++) {
    Vector of_b[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) std::memcpy(&of_b[v], b + k * b_row + v * WIDTH, sizeof(Vector));
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const float factor = a[r * a_row + k * a_step];
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) sums[r][v] += factor * of_b[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
      float* to = c + r * c_row + v * WIDTH;
      if (add) {
        Vector before;
        std::memcpy(&before, to, sizeof(Vector));
        sums[r][v] += before;
      }
      std::memcpy(to, &sums[r][v], sizeof(Vector));
    }
  }
}

template <int V>
void tiles(int64_t rows, int64_t depth, const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t b_row, float* c, int64_t c_row, bool add) {
  for (int64_t r = 0; r < rows; r += ROWS) tile<ROWS, V>(depth, a + r * a_row, a_row, a_step, b, b_row, c + r * c_row, c_row, add);
}

// c (rows, columns) = or += a b, with `a` (rows, depth) at any steps; rows a multiple of ROWS, columns of STEP
void multiply(
    int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t b_row, float* c, int64_t c_row,
    bool add = false) {
  for (int64_t done = 0; done < columns;) {
    const int64_t left = (columns - done) / WIDTH;
    if (left == 1) {
      tiles<1>(rows, depth, a, a_row, a_step, b + done, b_row, c + done, c_row, add);
      done += WIDTH;
    } else if (left == 2 || left == 4) {
      tiles<2>(rows, depth, a, a_row, a_step, b + done, b_row, c + done, c_row, add);
      done += 2 * WIDTH;
    } else {
      tiles<3>(rows, depth, a, a_row, a_step, b + done, b_row, c + done, c_row, add);
      done += 3 * WIDTH;
    }
  }
}

// Rows of numbers as float, with zeros up to `rows` and `columns`
template <class T>
void copy(const Operand<T>& from, int64_t token, int64_t head, int64_t count, int64_t size, int64_t rows, int64_t columns, float* to) {
  for (int64_t r = 0; r < rows; r++) {
    float* out = to + r * columns;
    const int64_t real = r < count ? size : 0;
    const T* row = from.at(token + (r < count ? r : 0), head);
    for (int64_t c = 0; c < real; c++) out[c] = number(row[c]);
    for (int64_t c = real; c < columns; c++) out[c] = 0;
  }
}

// The same transposed: (size, columns), with zeros from `count` on
template <class T>
void copy_transposed(const Operand<T>& from, int64_t token, int64_t head, int64_t count, int64_t size, int64_t columns, float* to) {
  for (int64_t first = 0; first < columns; first += STEP) {
    const int64_t real = count - first < STEP ? count - first : STEP;
    for (int64_t c = 0; c < size; c++) {
      float* out = to + c * columns + first;
      for (int64_t r = 0; r < real; r++) out[r] = number(from.at(token + first + r, head)[c]);
      for (int64_t r = real; r < STEP; r++) out[r] = 0;
    }
  }
}

template <class T>
void forward(
    const Operand<const T>& query, const Operand<const T>& key, const Operand<const T>& value, int64_t token, int64_t length, int64_t head, int64_t group,
    const Rule& rule, const Operand<T>& output, float* logs, int64_t tokens, float* scratch) {
  const int64_t size = rule.size, features = padded(size), keys = spaced(length);
  float* of_keys = scratch;                     // (size, keys)
  float* values = of_keys + features * keys;    // (keys, features)
  float* queries = values + features * keys;    // (BLOCK, features)
  float* mixed = queries + BLOCK * features;    // (BLOCK, features)
  float* scores = mixed + BLOCK * features;     // (BLOCK, keys)
  copy_transposed(key, token, head, length, size, keys, of_keys);
  copy(value, token, head, length, size, keys, features, values);
  for (int64_t h = head * group; h < (head + 1) * group; h++) {
    for (int64_t start = 0; start < length; start += BLOCK) {
      const int64_t rows = length - start < BLOCK ? length - start : BLOCK, all = (rows + ROWS - 1) / ROWS * ROWS;
      const Seen seen(rule, start, rows, length);
      copy(query, token + start, h, rows, size, all, features, queries);
      fetch<T, 1>(output, token + start, h, rows, size);
      fetch_next<BLOCK>(query, token, h, h + 1 == (head + 1) * group, start, length, size);
      multiply(all, seen.width, size, queries, features, 1, of_keys + seen.from, keys, scores, keys);
      float sums[BLOCK];
      for (int64_t r = 0; r < rows; r++) {
        const int64_t row = start + r;
        float most;
        to_weights(scores + r * keys, seen, rule, rule.first(row), rule.end(row, length), row_bits(rule, token + row, h), most, sums[r]);
        logs[h * tokens + token + row] = most + std::log(sums[r]);
      }
      multiply(all, features, seen.width, scores, keys, 1, values + seen.from * features, features, mixed, features);
      for (int64_t r = 0; r < rows; r++) {
        T* out = output.at(token + start + r, h);
        const float by = rule.keep() / sums[r];
        for (int64_t c = 0; c < size; c++) put(mixed[r * features + c] * by, out[c]);
      }
    }
  }
}

template <class T>
void backward(
    const Operand<const T>& grad, const Operand<const T>& query, const Operand<const T>& key, const Operand<const T>& value,
    const Operand<const T>& output, const float* logs, int64_t tokens, int64_t token, int64_t length, int64_t head, int64_t group, const Rule& rule,
    const Operand<T>& of_query, const Operand<T>& of_key, const Operand<T>& of_value, float* scratch) {
  const int64_t size = rule.size, features = padded(size), keys = spaced(length), matrix = features * keys;
  float *keys_across = scratch, *values_across = scratch + matrix, *key_rows = scratch + 2 * matrix;
  float *key_slopes = scratch + 3 * matrix, *value_slopes = scratch + 4 * matrix;
  float* queries = scratch + 5 * matrix;  // these three: (BLOCK, features)
  float* grads = queries + BLOCK * features;
  float* query_slopes = grads + BLOCK * features;
  float* scores = query_slopes + BLOCK * features;  // these two: (BLOCK, keys)
  float* slopes = scores + BLOCK * keys;
  copy_transposed(key, token, head, length, size, keys, keys_across);
  copy_transposed(value, token, head, length, size, keys, values_across);
  copy(key, token, head, length, size, keys, features, key_rows);
  std::memset(key_slopes, 0, 2 * matrix * sizeof(float));
  for (int64_t h = head * group; h < (head + 1) * group; h++) {
    for (int64_t start = 0; start < length; start += BLOCK) {
      const int64_t rows = length - start < BLOCK ? length - start : BLOCK, all = (rows + ROWS - 1) / ROWS * ROWS;
      const Seen seen(rule, start, rows, length);
      copy(query, token + start, h, rows, size, all, features, queries);
      copy(grad, token + start, h, rows, size, all, features, grads);
      fetch(output, token + start, h, rows, size);
      fetch<T, 1>(of_query, token + start, h, rows, size);
      const bool last_head = h + 1 == (head + 1) * group;
      fetch_next<BLOCK>(query, token, h, last_head, start, length, size);
      fetch_next<BLOCK>(grad, token, h, last_head, start, length, size);
      multiply(all, seen.width, size, queries, features, 1, keys_across + seen.from, keys, scores, keys);
      multiply(all, seen.width, size, grads, features, 1, values_across + seen.from, keys, slopes, keys);
      for (int64_t r = 0; r < rows; r++) {
        const int64_t row = start + r;
        const T* out = output.at(token + row, h);
        float share = 0;
#pragma omp simd reduction(+ : share)
        for (int64_t c = 0; c < size; c++) share += grads[r * features + c] * number(out[c]);
        to_slopes(
            scores + r * keys, slopes + r * keys, seen, rule, rule.first(row), rule.end(row, length), row_bits(rule, token + row, h),
            logs[h * tokens + token + row], share);
      }
      multiply(seen.width, features, rows, scores, 1, keys, grads, features, value_slopes + seen.from * features, features, true);
      multiply(seen.width, features, rows, slopes, 1, keys, queries, features, key_slopes + seen.from * features, features, true);
      multiply(all, features, seen.width, slopes, keys, 1, key_rows + seen.from * features, features, query_slopes, features);
      for (int64_t r = 0; r < rows; r++) {
        T* to = of_query.at(token + start + r, h);
        for (int64_t c = 0; c < size; c++) put(query_slopes[r * features + c], to[c]);
      }
    }
  }
  for (int64_t r = 0; r < length; r++) {
    T *to_key = of_key.at(token + r, head), *to_value = of_value.at(token + r, head);
    for (int64_t c = 0; c < size; c++) put(key_slopes[r * features + c], to_key[c]);
    for (int64_t c = 0; c < size; c++) put(value_slopes[r * features + c], to_value[c]);
  }
}

// All sequences, on all threads
struct Work {
  Rule rule;
  const int64_t* sequences;  // (count, 2): first token and length, in the order in which they are taken
  int64_t count, tokens;
  int64_t key_heads, group;  // group: heads of queries for each of keys
  float* scratch;            // (threads, room)
  int64_t room;
  int threads;
};

template <class F>
void each(const Work& work, F compute) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(work.threads)
  for (int64_t i = 0; i < work.count * work.key_heads; i++) {
    const int64_t* sequence = work.sequences + i / work.key_heads * 2;
    compute(sequence[0], sequence[1], i % work.key_heads, work.scratch + omp_get_thread_num() * work.room);
  }
}

template <class T, class F>
void attend(const Work& work, const Operand<const T>* in, const Operand<T>* out, float* logs, F forward) {
  each(work, [&](int64_t token, int64_t length, int64_t head, float* scratch) {
    forward(in[0], in[1], in[2], token, length, head, work.group, work.rule, out[0], logs, work.tokens, scratch);
  });
}

template <class T, class F>
void differentiate(const Work& work, const Operand<const T>* in, const Operand<T>* out, const float* logs, F backward) {
  each(work, [&](int64_t token, int64_t length, int64_t head, float* scratch) {
    backward(
        in[0], in[1], in[2], in[3], in[4], logs, work.tokens, token, length, head, work.group, work.rule, out[0], out[1], out[2], scratch);
  });
}

}  // namespace

extern "C" {

// Floats that one thread works in, for a longest sequence
int64_t frostline_attention_room(int64_t longest, int64_t size, int gradient) {
  const int64_t matrices = gradient ? 5 : 2, blocks = gradient ? 3 : 2, scores = gradient ? 2 : 1;
  const int64_t room = padded(size) * (matrices * spaced(longest) + blocks * BLOCK) + scores * BLOCK * spaced(longest);
#ifdef FROSTLINE_AMX
  return std::max(room, amx_room(longest, size, gradient));
#else
  return room;
#endif
}

// in: query, key, value; out: output and logs (heads, tokens), the logarithms of the sums of exponentials
void frostline_attend_float32(const Work* work, const Operand<const float>* in, const Operand<float>* out, float* logs) {
  attend(*work, in, out, logs, forward<float>);
}
void frostline_attend_bfloat16(const Work* work, const Operand<const Bf16>* in, const Operand<Bf16>* out, float* logs) {
#ifdef FROSTLINE_AMX
  if (amx_allowed()) return attend(*work, in, out, logs, forward_amx);
#endif
  attend(*work, in, out, logs, forward<Bf16>);
}

// in: the output's gradient, query, key, value, output; out: gradients of query, key and value
void frostline_differentiate_float32(const Work* work, const Operand<const float>* in, const Operand<float>* out, const float* logs) {
  differentiate(*work, in, out, logs, backward<float>);
}
void frostline_differentiate_bfloat16(const Work* work, const Operand<const Bf16>* in, const Operand<Bf16>* out, const float* logs) {
#ifdef FROSTLINE_AMX
  if (amx_allowed()) return differentiate(*work, in, out, logs, backward_amx);
#endif
  differentiate(*work, in, out, logs, backward<Bf16>);
}
}
