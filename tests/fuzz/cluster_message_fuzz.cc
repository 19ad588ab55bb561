// What cluster nodes say to one another inside of frames, and the view that etcd keeps.
//
// Input: which kind of thing, which method, its bytes.
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "meta/cluster_messages.h"
#include "meta/membership.h"
#include "meta/name_messages.h"
#include "tests/fuzz/fuzz_target.h"

namespace kvcfs {
namespace {

enum Kind : uint8_t { kRequest, kReply, kView, kNameRequest, kNameReply, kNameRecord, kKinds };

template <typename Variant, size_t... index>
std::vector<Variant> OneOfEach(std::index_sequence<index...> /*indices*/) {
  return {Variant(std::in_place_index<index>)...};
}
template <typename Variant>
std::vector<Variant> OneOfEach() {
  return OneOfEach<Variant>(std::make_index_sequence<std::variant_size_v<Variant>>());
}

std::string Input(Kind kind, size_t method, std::span<const std::byte> bytes) {
  std::string input = {static_cast<char>(kind), static_cast<char>(method)};
  return input.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

// What can be read can be written, and reads the same again.
template <typename Message, typename Decode>
void CheckRoundTrip(const Result<Message>& message, Decode decode) {
  if (!message.ok()) return;
  const rdma::Bytes once = Encode(*message);
  const auto again = decode(std::span<const std::byte>(once));
  KVC_CHECK(again.ok());
  KVC_CHECK(Encode(*again) == once);
}

}  // namespace

std::vector<std::string> FuzzSeeds() {
  std::vector<std::string> seeds;
  for (const auto& body : OneOfEach<meta::RequestBody>()) {
    seeds.push_back(Input(kRequest, body.index(), Encode(meta::Request{7, body})));
  }
  for (const auto& body : OneOfEach<meta::ReplyBody>()) {
    // Whichever method that body answers; the others refuse it.
    for (size_t method = 0; method < meta::kMethodCount; ++method) {
      const auto bytes = Encode(meta::Reply{Code::kOk, 7, body});
      const auto number = static_cast<rdma::Method>(meta::kMethodFirst + method);
      if (meta::DecodeReply(number, bytes).ok()) seeds.push_back(Input(kReply, method, bytes));
    }
  }
  const std::string view = meta::EncodeView({.epoch = 3,
                                             .nodes = {{.id = {1, 2},
                                                        .incarnation = 4,
                                                        .roles = meta::kRoleBlocks,
                                                        .address = "[::1]:80",
                                                        .name = "n1"}}});
  seeds.push_back(Input(kView, 0, std::as_bytes(std::span(view))));
  meta::NameRequest names;
  names.op = meta::NameOp::kPush;
  names.name = "name";
  names.file.xattrs = {{"user.a", "b"}};
  names.records = {{"key", "value"}};
  seeds.push_back(Input(kNameRequest, 0, Encode(names)));
  meta::NameReply listed;
  listed.entries.push_back({"name", 7, names.file});
  listed.removed.push_back(names.file);
  seeds.push_back(Input(kNameReply, 0, Encode(listed)));
  meta::StoredFile file;
  file.file = names.file;
  file.names = {{{1, 2}, "name"}};
  const std::string stored = meta::EncodeStored(file);
  seeds.push_back(Input(kNameRecord, 0, std::as_bytes(std::span(stored))));
  return seeds;
}

void FuzzOne(std::span<const std::byte> bytes) {
  if (bytes.size() < 2) return;
  const auto method = static_cast<rdma::Method>(meta::kMethodFirst + static_cast<size_t>(bytes[1]));
  const auto body = bytes.subspan(2);
  switch (static_cast<uint8_t>(bytes[0]) % kKinds) {
    case kRequest: {
      const auto decode = [method](auto from) { return meta::DecodeRequest(method, from); };
      CheckRoundTrip(decode(body), decode);
      return;
    }
    case kReply: {
      const auto decode = [method](auto from) { return meta::DecodeReply(method, from); };
      CheckRoundTrip(decode(body), decode);
      return;
    }
    case kNameRequest:
      return CheckRoundTrip(meta::DecodeNameRequest(body), meta::DecodeNameRequest);
    case kNameReply:
      return CheckRoundTrip(meta::DecodeNameReply(body), meta::DecodeNameReply);
    case kNameRecord: {
      const std::string record(reinterpret_cast<const char*>(body.data()), body.size());
      const auto stored = meta::DecodeStored(record);
      if (stored.ok()) KVC_CHECK(meta::EncodeStored(*stored) == record);
      return;
    }
    default: {
      const std::string json(reinterpret_cast<const char*>(body.data()), body.size());
      const auto view = meta::DecodeView(json);
      if (!view.has_value()) return;
      const std::string once = meta::EncodeView(*view);
      const auto again = meta::DecodeView(once);
      KVC_CHECK(again.has_value() && meta::EncodeView(*again) == once);
    }
  }
}

}  // namespace kvcfs
