// What the blocks of a transformer compute between their matrix products, and its gradient: one pass over memory each, where PyTorch
// takes two to five.
//
// Sums, exponentials and products are in float32 whatever comes in, and are rounded once.

#include <cmath>
#include <cstdint>
#include <cstring>

#include "bfloat16.h"
#include "exponential.h"

namespace {

constexpr int64_t FEW = 1 << 14;  // numbers that one thread has done before a second one has woken up
constexpr int LANES = 32;         // partial sums side by side: their order does not depend on the processor

template <class F>
float sum(int64_t count, F value) {
  float lanes[LANES] = {};
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    for (int k = 0; k < LANES; k++) lanes[k] += value(i + k);
  }
  float total = 0;
  for (; i < count; i++) total += value(i);
  for (int k = 0; k < LANES; k++) total += lanes[k];
  return total;
}

template <class X, class Y>
void rms_norm(const X* __restrict x, int64_t rows, int64_t columns, const float* __restrict weight, float eps, Y* __restrict y, float* __restrict factors) {
#pragma omp parallel for schedule(static) if (rows * columns > FEW)
  for (int64_t r = 0; r < rows; r++) {
    const X* row = x + r * columns;
    Y* out = y + r * columns;
    const float squares = sum(columns, [row](int64_t c) { return number(row[c]) * number(row[c]); });
    const float factor = 1 / std::sqrt(squares / float(columns) + eps);
    factors[r] = factor;
    for (int64_t c = 0; c < columns; c++) put(number(row[c]) * factor * weight[c], out[c]);
  }
}

template <class X, class Y>
void rms_norm_gradient(
    const Y* __restrict grad, const X* __restrict x, int64_t rows, int64_t columns, const float* __restrict weight, const float* __restrict factors,
    X* __restrict dx) {
#pragma omp parallel for schedule(static) if (rows * columns > FEW)
  for (int64_t r = 0; r < rows; r++) {
    const X* row = x + r * columns;
    const Y* of = grad + r * columns;
    X* out = dx + r * columns;
    const float product = sum(columns, [row, of, weight](int64_t c) { return number(of[c]) * weight[c] * number(row[c]); });
    const float factor = factors[r], share = product * factor * factor / -float(columns);
    for (int64_t c = 0; c < columns; c++) put((number(of[c]) * weight[c] + number(row[c]) * share) * factor, out[c]);
  }
}

inline float sigmoid(float x) {
  const float e = exponential(x < 0 ? x : -x);
  return (x < 0 ? e : 1.0f) / (1 + e);
}

template <class T>
void swiglu(const T* __restrict gate, const T* __restrict up, int64_t count, T* __restrict y) {
#pragma omp parallel for simd schedule(static) if (parallel : count > FEW)
  for (int64_t i = 0; i < count; i++) {
    const float g = number(gate[i]);
    put(g * sigmoid(g) * number(up[i]), y[i]);
  }
}

template <class T>
void swiglu_gradient(const T* __restrict grad, const T* __restrict gate, const T* __restrict up, int64_t count, T* __restrict of_gate, T* __restrict of_up) {
#pragma omp parallel for simd schedule(static) if (parallel : count > FEW)
  for (int64_t i = 0; i < count; i++) {
    const float d = number(grad[i]), g = number(gate[i]), s = sigmoid(g);
    put(d * number(up[i]) * s * (1 + g * (1 - s)), of_gate[i]);
    put(d * g * s, of_up[i]);
  }
}

// Axes (rows, tokens, heads, size), the last one contiguous; angles (rows, tokens, size)
struct Rotation {
  int64_t rows, tokens, heads, size;
  int64_t x_row, x_token, x_head, y_row, y_token, y_head, angle_row, angle_token;
  float sign;
};

template <class X, class A, class Y>
void rotate(const Rotation& r, const X* x, const A* cosines, const A* sines, Y* y) {
  const int64_t half = r.size / 2;
#pragma omp parallel for collapse(2) schedule(static) if (r.rows * r.tokens * r.heads * r.size > FEW)
  for (int64_t row = 0; row < r.rows; row++) {
    for (int64_t token = 0; token < r.tokens; token++) {
      const A* __restrict cosine = cosines + row * r.angle_row + token * r.angle_token;
      const A* __restrict sine = sines + row * r.angle_row + token * r.angle_token;
      for (int64_t head = 0; head < r.heads; head++) {
        const X* __restrict from = x + row * r.x_row + token * r.x_token + head * r.x_head;
        Y* __restrict to = y + row * r.y_row + token * r.y_token + head * r.y_head;
        for (int64_t i = 0; i < half; i++) {
          const float first = number(from[i]), second = number(from[i + half]);
          put(first * number(cosine[i]) - r.sign * (second * number(sine[i])), to[i]);
          put(second * number(cosine[i + half]) + r.sign * (first * number(sine[i + half])), to[i + half]);
        }
      }
    }
  }
}

}  // namespace

#define FROSTLINE_RMS_NORM(X_NAME, X, Y_NAME, Y)                                                                                                   \
  extern "C" void frostline_rms_norm_##X_NAME##_##Y_NAME(                                                                                          \
      const X* x, int64_t rows, int64_t columns, const float* weight, float eps, Y* y, float* factors) {                                           \
    rms_norm(x, rows, columns, weight, eps, y, factors);                                                                                           \
  }                                                                                                                                                \
  extern "C" void frostline_rms_norm_gradient_##X_NAME##_##Y_NAME(                                                                                 \
      const Y* grad, const X* x, int64_t rows, int64_t columns, const float* weight, const float* factors, X* dx) {                                \
    rms_norm_gradient(grad, x, rows, columns, weight, factors, dx);                                                                                \
  }
FROSTLINE_RMS_NORM(float32, float, float32, float)
FROSTLINE_RMS_NORM(float32, float, bfloat16, Bf16)
FROSTLINE_RMS_NORM(bfloat16, Bf16, bfloat16, Bf16)
FROSTLINE_RMS_NORM(bfloat16, Bf16, float32, float)

#define FROSTLINE_SWIGLU(NAME, T)                                                                                                                  \
  extern "C" void frostline_swiglu_##NAME(const T* gate, const T* up, int64_t count, T* y) { swiglu(gate, up, count, y); }                         \
  extern "C" void frostline_swiglu_gradient_##NAME(const T* grad, const T* gate, const T* up, int64_t count, T* of_gate, T* of_up) {               \
    swiglu_gradient(grad, gate, up, count, of_gate, of_up);                                                                                        \
  }
FROSTLINE_SWIGLU(float32, float)
FROSTLINE_SWIGLU(bfloat16, Bf16)

#define FROSTLINE_ROTATE(X_NAME, X, A_NAME, A, Y_NAME, Y)                                                                                          \
  extern "C" void frostline_rotate_##X_NAME##_##A_NAME##_##Y_NAME(const Rotation* r, const X* x, const A* cosines, const A* sines, Y* y) {         \
    rotate(*r, x, cosines, sines, y);                                                                                                              \
  }
FROSTLINE_ROTATE(float32, float, float32, float, float32, float)
FROSTLINE_ROTATE(float32, float, float32, float, bfloat16, Bf16)
FROSTLINE_ROTATE(bfloat16, Bf16, float32, float, bfloat16, Bf16)
FROSTLINE_ROTATE(bfloat16, Bf16, float32, float, float32, float)
FROSTLINE_ROTATE(bfloat16, Bf16, bfloat16, Bf16, bfloat16, Bf16)
FROSTLINE_ROTATE(bfloat16, Bf16, bfloat16, Bf16, float32, float)
