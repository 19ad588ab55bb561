#include "rdma/verbs_shared.h"

#include <cstring>

namespace kvcfs::rdma {
namespace {

Error TooShort() {
  return {Code::kCorrupt, "a message of another length than it says"};
}

VerbsToken TokenOf(std::span<const std::byte> bytes) {
  VerbsToken token{};
  if (bytes.size() == token.size()) std::memcpy(token.data(), bytes.data(), bytes.size());
  return token;
}

}  // namespace

Bytes VerbsOffer::Encode() const {
  Writer out;
  out.U16(port).Raw(token);
  return out.Take();
}

Result<VerbsOffer> VerbsOffer::Decode(std::span<const std::byte> bytes) {
  Reader in(bytes);
  VerbsOffer offer;
  offer.port = in.U16();
  offer.token = TokenOf(in.Raw(offer.token.size()));
  if (!in.Finished()) return TooShort();
  return offer;
}

Bytes VerbsRegionRequest::Encode() const {
  Writer out;
  out.U64(region).Raw(token);
  return out.Take();
}

Result<VerbsRegionRequest> VerbsRegionRequest::Decode(std::span<const std::byte> bytes) {
  Reader in(bytes);
  VerbsRegionRequest request;
  request.region = in.U64();
  request.token = TokenOf(in.Raw(request.token.size()));
  if (!in.Finished()) return TooShort();
  return request;
}

Bytes EncodeVerbsKey(const VerbsRegions::Key& key) {
  Writer out;
  out.U64(key.address).U64(key.length).U32(key.key).U8(key.device);
  return out.Take();
}

Result<VerbsRegions::Key> DecodeVerbsKey(std::span<const std::byte> bytes) {
  Reader in(bytes);
  VerbsRegions::Key key;
  key.address = in.U64();
  key.length = in.U64();
  key.key = in.U32();
  key.device = in.U8();
  if (!in.Finished()) return TooShort();
  return key;
}

}  // namespace kvcfs::rdma
