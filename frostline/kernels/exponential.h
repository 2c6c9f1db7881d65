// e^x in plain operations, which compilers turn into vectors.

#pragma once

#include <cstdint>
#include <cstring>

// e^x for x <= 0, to about one unit in the last place (the polynomial of Cephes' expf); NaN stays NaN.
inline float exponential(float x) {
  const float power = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;  // rounded to a whole number
  const float r = (x - power * 0.693359375f) + power * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t bits = (int32_t(power < -126.0f ? -126.0f : power) + 127) * (1 << 23);
  float two;
  std::memcpy(&two, &bits, sizeof two);
  return x < -87.0f ? 0.0f : p * two;
}
