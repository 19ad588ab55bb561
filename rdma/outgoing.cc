#include "rdma/outgoing.h"

namespace kvcfs::rdma {

Outgoing MakeFrame(FrameHeader header, Bytes head, std::span<const std::byte> bulk) {
  Outgoing frame;
  header.bulk_bytes = static_cast<uint32_t>(bulk.size());
  frame.header = EncodeHeader(header, head);
  frame.head = std::move(head);
  frame.bulk = bulk;
  frame.id = header.request_id;
  return frame;
}

Outgoing MakeGoodbye(const Error& why) {
  return MakeFrame({.kind = FrameKind::kGoodbye, .code = why.code}, TextBytes(why.text));
}

Bytes TextBytes(std::string_view text) {
  constexpr size_t kTextMost = 4000;
  const auto bytes = std::as_bytes(std::span(text.substr(0, kTextMost)));
  return {bytes.begin(), bytes.end()};
}

}  // namespace kvcfs::rdma
