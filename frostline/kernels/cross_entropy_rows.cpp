// Cross-entropy and its gradient of rows of logits, in one visit to each row: a row stays in the processor's cache between the passes
// over it, where PyTorch's passes each go to memory and back.
//
// Sums and exponentials are in float32 whatever the logits are.

#include <cmath>
#include <cstdint>

#include "bfloat16.h"
#include "exponential.h"

namespace {

constexpr int LANES = 32;  // partial sums side by side: their order does not depend on the processor

template <class T>
float largest(const T* row, int64_t columns) {
  float lanes[LANES];
  for (int k = 0; k < LANES; k++) lanes[k] = -INFINITY;
  int64_t c = 0;
  for (; c + LANES <= columns; c += LANES) {
    for (int k = 0; k < LANES; k++) {
      const float value = number(row[c + k]);
      lanes[k] = value > lanes[k] ? value : lanes[k];
    }
  }
  float most = -INFINITY;
  for (; c < columns; c++) most = number(row[c]) > most ? number(row[c]) : most;
  for (int k = 0; k < LANES; k++) most = lanes[k] > most ? lanes[k] : most;
  return most;
}

template <class T>
float sum_of_exponentials(const T* row, int64_t columns, float most) {
  float lanes[LANES] = {};
  int64_t c = 0;
  for (; c + LANES <= columns; c += LANES) {
    for (int k = 0; k < LANES; k++) lanes[k] += exponential(number(row[c + k]) - most);
  }
  float total = 0;
  for (; c < columns; c++) total += exponential(number(row[c]) - most);
  for (int k = 0; k < LANES; k++) total += lanes[k];
  return total;
}

// row = (e^(row - shift) · by - [c = label] · factor)
template <class T>
void to_slope(T* row, int64_t columns, float shift, float by, int64_t label, float factor) {
  const float own = exponential(number(row[label]) - shift) * by - factor;
  for (int64_t c = 0; c < columns; c++) put(exponential(number(row[c]) - shift) * by, row[c]);
  put(own, row[label]);
}

template <class T>
void losses(T* z, int64_t rows, int64_t columns, const int64_t* labels, float* nll, uint8_t* correct, float* log_sums, int slopes) {
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    T* row = z + r * columns;
    const int64_t label = labels[r];
    const float most = largest(row, columns), own = number(row[label]);
    const float total = sum_of_exponentials(row, columns, most);
    int before = 0;  // of equal ones the first counts
    if (own == most) {
      for (int64_t c = 0; c < label; c++) before |= number(row[c]) == own;
    }
    correct[r] = own == most && !before;
    nll[r] = std::log(total) - (own - most);  // not by the sum's log: far from zero it has few digits
    if (log_sums) log_sums[r] = std::log(total) + most;
    if (slopes) to_slope(row, columns, most, 1 / total, label, 1.0f);
  }
}

template <class T>
void slopes_of(T* z, int64_t rows, int64_t columns, const int64_t* labels, const float* log_sums, const float* factors) {
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++) to_slope(z + r * columns, columns, log_sums[r], factors[r], labels[r], factors[r]);
}

}  // namespace

extern "C" {

// nll (rows) = log sum e^z - z[label]; z becomes softmax(z) - onehot(label) where slopes are asked for; log_sums may be null
void frostline_losses_float32(
    float* z, int64_t rows, int64_t columns, const int64_t* labels, float* nll, uint8_t* correct, float* log_sums, int slopes) {
  losses(z, rows, columns, labels, nll, correct, log_sums, slopes);
}
void frostline_losses_bfloat16(
    Bf16* z, int64_t rows, int64_t columns, const int64_t* labels, float* nll, uint8_t* correct, float* log_sums, int slopes) {
  losses(z, rows, columns, labels, nll, correct, log_sums, slopes);
}

// z becomes (e^(z - log_sum) - onehot(label)) · factor of its row
void frostline_slopes_float32(
    float* z, int64_t rows, int64_t columns, const int64_t* labels, const float* log_sums, const float* factors) {
  slopes_of(z, rows, columns, labels, log_sums, factors);
}
void frostline_slopes_bfloat16(
    Bf16* z, int64_t rows, int64_t columns, const int64_t* labels, const float* log_sums, const float* factors) {
  slopes_of(z, rows, columns, labels, log_sums, factors);
}
}
