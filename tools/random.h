// Random numbers that are the same with every standard library: its distributions are not.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace kvcfs::tools {

// xoshiro256**, seeded by splitmix64. Source: Blackman & Vigna, prng.di.unimi.it.
class Random {
 public:
  explicit Random(uint64_t seed) {
    for (uint64_t& word : state_) {
      seed += 0x9e3779b97f4a7c15u;
      uint64_t mixed = seed;
      mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9u;
      mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebu;
      word = mixed ^ (mixed >> 31);
    }
  }

  uint64_t Next() {
    const uint64_t result = Rotate(state_[1] * 5, 7) * 9;
    const uint64_t shifted = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= shifted;
    state_[3] = Rotate(state_[3], 45);
    return result;
  }

  // In [0, 1).
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1p-53; }
  uint64_t Below(uint64_t bound) {
    return static_cast<uint64_t>(Uniform() * static_cast<double>(bound));
  }
  bool Chance(double share) { return Uniform() < share; }

  double Normal() {
    const double radius = std::sqrt(-2 * std::log(1 - Uniform()));
    return radius * std::cos(6.283185307179586 * Uniform());
  }
  // exp(N(log(median), sigma)).
  double LogNormal(double median, double sigma) { return median * std::exp(sigma * Normal()); }
  // Knuth's way: for small means.
  uint64_t Poisson(double mean) {
    const double limit = std::exp(-mean);
    uint64_t count = 0;
    double product = Uniform();
    while (product > limit) {
      ++count;
      product *= Uniform();
    }
    return count;
  }

 private:
  static uint64_t Rotate(uint64_t x, int by) { return (x << by) | (x >> (64 - by)); }

  uint64_t state_[4];
};

// Index i in [0, n) with probability proportional to 1 / (i + 1)^exponent.
class Zipf {
 public:
  Zipf(uint64_t n, double exponent) {
    double total = 0;
    for (uint64_t i = 0; i < n; ++i) {
      total += std::pow(static_cast<double>(i + 1), -exponent);
      cumulative_.push_back(total);
    }
  }

  uint64_t operator()(Random& random) const {
    const double at = random.Uniform() * cumulative_.back();
    uint64_t low = 0, high = cumulative_.size() - 1;
    while (low < high) {
      const uint64_t middle = (low + high) / 2;
      if (cumulative_[middle] > at) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  }

 private:
  std::vector<double> cumulative_;
};

}  // namespace kvcfs::tools
