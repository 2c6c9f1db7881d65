// Numbers of float32 and bfloat16 as float, and back with PyTorch's rounding.

#pragma once

#include <cstdint>
#include <cstring>

using Bf16 = uint16_t;  // the upper half of a float

inline float number(float value) { return value; }

inline float number(Bf16 value) {
  const uint32_t bits = uint32_t(value) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

inline void put(float value, float& to) { to = value; }

inline void put(float value, Bf16& to) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = bits + 0x7fff + ((bits >> 16) & 1);  // to the nearest, ties to even
  to = value == value ? Bf16(rounded >> 16) : Bf16(0x7fc0);
}
