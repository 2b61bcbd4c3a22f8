// The assembly that the loops of x86-64 instruction sets share: a body of independent steps, repeated.
#pragma once
#include <cstdint>

// Twelve steps, each on an accumulator of its own.
#define HCE_TWELVE(STEP) STEP(0) STEP(1) STEP(2) STEP(3) STEP(4) STEP(5) STEP(6) STEP(7) STEP(8) STEP(9) STEP(10) STEP(11)

// `body` once per iteration, at least once; the registers named behind it are overwritten.
#define HCE_REPEAT(iterations, body, ...)                                                               \
  do {                                                                                                  \
    int64_t left = (iterations);                                                                        \
    __asm__ volatile("1:\n" body "dec %0\njnz 1b\n" : "+r"(left) : : "cc", __VA_ARGS__); \
  } while (false)
