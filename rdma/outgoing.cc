#include "rdma/outgoing.h"

#include <algorithm>

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
  const auto text =
      std::as_bytes(std::span(why.text)).first(std::min<size_t>(why.text.size(), 4000));
  return MakeFrame({.kind = FrameKind::kGoodbye, .code = why.code}, {text.begin(), text.end()});
}

}  // namespace kvcfs::rdma
