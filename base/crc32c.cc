#include "base/crc32c.h"

#include <algorithm>
#include <array>

#include <isa-l.h>

namespace kvcfs {
namespace {

// ISA-L counts in int.
constexpr size_t kBytesPerCall = size_t{1} << 30;

// The polynomial with its bits reversed, as CRC32C is always computed.
constexpr uint32_t kPolynomial = 0x82F63B78;

// a(x) * b(x) modulo the polynomial, bits reversed: the highest bit is x^0.
constexpr uint32_t Multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t bit = 0x80000000; bit != 0; bit >>= 1) {
    if ((a & bit) != 0) product ^= b;
    b = (b & 1) != 0 ? (b >> 1) ^ kPolynomial : b >> 1;
  }
  return product;
}

// [n] = x^(8 * 2^n): what 2^n zero bytes do to a CRC.
constexpr std::array<uint32_t, 64> MakeShifts() {
  std::array<uint32_t, 64> shifts{};
  uint32_t power = 0x00800000;  // x^8
  for (uint32_t& shift : shifts) {
    shift = power;
    power = Multiply(power, power);
  }
  return shifts;
}
constexpr std::array<uint32_t, 64> kShifts = MakeShifts();

}  // namespace

uint32_t Crc32c(std::span<const std::byte> data, uint32_t before) {
  uint32_t crc = ~before;
  while (!data.empty()) {
    const size_t bytes = std::min(data.size(), kBytesPerCall);
    // ISA-L only reads, though it does not say const.
    auto* begin = const_cast<unsigned char*>(reinterpret_cast<const unsigned char*>(data.data()));
    crc = crc32_iscsi(begin, static_cast<int>(bytes), crc);
    data = data.subspan(bytes);
  }
  return ~crc;
}

uint32_t Crc32cCombine(uint32_t crc_a, uint32_t crc_b, uint64_t b_bytes) {
  for (size_t n = 0; b_bytes != 0; ++n, b_bytes >>= 1) {
    if ((b_bytes & 1) != 0) crc_a = Multiply(kShifts[n], crc_a);
  }
  return crc_a ^ crc_b;
}

}  // namespace kvcfs
