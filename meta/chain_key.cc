#include "meta/chain_key.h"

#include <array>
#include <cstring>
#include <memory>

#include <openssl/evp.h>

#include "base/result.h"

namespace kvcfs::meta {
namespace {

struct FreeContext {
  void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
};

// OpenSSL 3 looks a digest up by name each time it is asked for one: fetched once a process, and
// one context a thread.
const EVP_MD* Digest() {
  static const EVP_MD* const digest = EVP_MD_fetch(nullptr, "SHA256", nullptr);
  KVC_CHECK(digest != nullptr);
  return digest;
}

}  // namespace

BlockKey Sha256(std::span<const std::byte> data) {
  thread_local const std::unique_ptr<EVP_MD_CTX, FreeContext> context(EVP_MD_CTX_new());
  BlockKey key;
  KVC_CHECK(context != nullptr && EVP_DigestInit_ex2(context.get(), Digest(), nullptr) == 1 &&
            EVP_DigestUpdate(context.get(), data.data(), data.size()) == 1 &&
            EVP_DigestFinal_ex(context.get(), key.bytes.data(), nullptr) == 1);
  return key;
}

BlockKey ChainKey(const BlockKey& parent, uint64_t id) {
  std::array<std::byte, BlockKey::kBytes + sizeof id> input;
  std::memcpy(input.data(), parent.bytes.data(), BlockKey::kBytes);
  for (size_t i = 0; i < sizeof id; ++i) {
    input[BlockKey::kBytes + i] = static_cast<std::byte>(id >> (8 * i));
  }
  const std::span<const std::byte> whole(input);
  return Sha256(parent.IsZero() ? whole.subspan(BlockKey::kBytes) : whole);
}

std::vector<BlockKey> ChainKeys(std::span<const uint64_t> ids) {
  std::vector<BlockKey> keys;
  keys.reserve(ids.size());
  BlockKey parent;
  for (const uint64_t id : ids) keys.push_back(parent = ChainKey(parent, id));
  return keys;
}

}  // namespace kvcfs::meta
