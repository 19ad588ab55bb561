#include "meta/name_messages.h"

#include <type_traits>

#include "base/crc32c.h"
#include "rdma/wire.h"

namespace kvcfs::meta {
namespace {

// One list of fields a struct, for both ways: `visit` is a Put or a Get.
template <typename File, typename Visit>
void VisitFile(File& file, Visit&& visit) {
  visit(file.id, file.mode, file.uid, file.gid, file.links, file.size, file.device,
        file.atime_nanos, file.mtime_nanos, file.ctime_nanos, file.change, file.content,
        file.parent, file.target, file.xattrs);
}
template <typename Request, typename Visit>
void VisitRequest(Request& request, Visit&& visit) {
  visit(request.epoch, request.space, request.request, request.op, request.flags, request.directory,
        request.to_directory, request.name, request.to_name, request.value, request.file,
        request.cookie, request.limit, request.term, request.sequence, request.records);
}
template <typename Reply, typename Visit>
void VisitReply(Reply& reply, Visit&& visit) {
  visit(reply.code, reply.epoch, reply.error, reply.file, reply.removed, reply.entries, reply.done,
        reply.term, reply.sequence, reply.records);
}

class Put {
 public:
  explicit Put(rdma::Writer* writer) : writer_(*writer) {}
  template <typename... T>
  void operator()(const T&... values) {
    (One(values), ...);
  }

 private:
  void One(uint8_t value) { writer_.U8(value); }
  void One(bool value) { writer_.U8(value ? 1 : 0); }
  void One(uint32_t value) { writer_.U32(value); }
  void One(uint64_t value) { writer_.U64(value); }
  void One(int64_t value) { writer_.U64(static_cast<uint64_t>(value)); }
  void One(Code value) { writer_.U8(static_cast<uint8_t>(value)); }
  void One(NameOp value) { writer_.U8(static_cast<uint8_t>(value)); }
  void One(NameError value) { writer_.U8(static_cast<uint8_t>(value)); }
  void One(const SpaceId& id) { writer_.U64(id.high).U64(id.low); }
  void One(const FileId& id) { writer_.U64(id.high).U64(id.low); }
  void One(const std::string& text) { writer_.Text(text); }
  void One(const SharedFile& file) { VisitFile(file, *this); }
  void One(const NameRecord& record) { (*this)(record.key, record.value, record.deleted); }
  void One(const NameEntry& entry) { (*this)(entry.name, entry.cookie, entry.file); }
  template <typename A, typename B>
  void One(const std::pair<A, B>& both) {
    (*this)(both.first, both.second);
  }
  template <typename T>
  void One(const std::vector<T>& all) {
    writer_.U32(static_cast<uint32_t>(all.size()));
    for (const T& each : all) One(each);
  }
  rdma::Writer& writer_;
};

class Get {
 public:
  explicit Get(rdma::Reader* reader) : reader_(*reader) {}
  template <typename... T>
  void operator()(T&... values) {
    (One(values), ...);
  }
  bool Finished() const { return valid_ && reader_.Finished(); }

 private:
  // Fewer bytes than any of the things in lists takes.
  static constexpr size_t kLeastBytes = 8;

  template <typename Enum>
  void OneOf(Enum& value, Enum last) {
    const uint8_t byte = reader_.U8();
    valid_ = valid_ && byte <= static_cast<uint8_t>(last);
    value = static_cast<Enum>(byte);
  }
  void One(bool& value) {
    const uint8_t byte = reader_.U8();
    valid_ = valid_ && byte <= 1;
    value = byte == 1;
  }
  void One(uint32_t& value) { value = reader_.U32(); }
  void One(uint64_t& value) { value = reader_.U64(); }
  void One(int64_t& value) { value = static_cast<int64_t>(reader_.U64()); }
  void One(Code& value) { OneOf(value, Code::kDenied); }
  void One(NameOp& value) { OneOf(value, static_cast<NameOp>(kNameOpLast)); }
  void One(NameError& value) { OneOf(value, NameError::kDenied); }
  void One(SpaceId& id) { (*this)(id.high, id.low); }
  void One(FileId& id) { (*this)(id.high, id.low); }
  void One(std::string& text) { text = reader_.Text(); }
  void One(SharedFile& file) { VisitFile(file, *this); }
  void One(NameRecord& record) { (*this)(record.key, record.value, record.deleted); }
  void One(NameEntry& entry) { (*this)(entry.name, entry.cookie, entry.file); }
  template <typename A, typename B>
  void One(std::pair<A, B>& both) {
    (*this)(both.first, both.second);
  }
  template <typename T>
  void One(std::vector<T>& all) {
    const uint32_t count = reader_.Count(kLeastBytes);
    all.clear();
    for (uint32_t i = 0; i < count && reader_.ok(); ++i) One(all.emplace_back());
  }
  rdma::Reader& reader_;
  bool valid_ = true;
};

}  // namespace

rdma::Bytes Encode(const NameRequest& request) {
  rdma::Writer writer;
  VisitRequest(request, Put(&writer));
  return writer.Take();
}

Result<NameRequest> DecodeNameRequest(std::span<const std::byte> bytes) {
  rdma::Reader reader(bytes);
  Get get(&reader);
  NameRequest request;
  VisitRequest(request, get);
  if (!get.Finished()) return Error{Code::kCorrupt, "a request about names that is none"};
  return request;
}

rdma::Bytes Encode(const NameReply& reply) {
  rdma::Writer writer;
  VisitReply(reply, Put(&writer));
  return writer.Take();
}

Result<NameReply> DecodeNameReply(std::span<const std::byte> bytes) {
  rdma::Reader reader(bytes);
  Get get(&reader);
  NameReply reply;
  VisitReply(reply, get);
  if (!get.Finished()) return Error{Code::kCorrupt, "a reply about names that is none"};
  return reply;
}

std::string EncodeStored(const StoredFile& stored) {
  rdma::Writer writer;
  Put put(&writer);
  put(stored.file, stored.names, stored.kept_until_nanos, stored.replaced);
  rdma::Bytes bytes = writer.Take();
  rdma::Writer end;
  end.U32(Crc32c(bytes));
  const rdma::Bytes crc = end.Take();
  bytes.insert(bytes.end(), crc.begin(), crc.end());
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

Result<StoredFile> DecodeStored(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  const Error damaged{Code::kCorrupt, "a record of a file that is damaged"};
  if (bytes.size() < 4) return damaged;
  const auto body = bytes.first(bytes.size() - 4);
  rdma::Reader end(bytes.last(4));
  if (end.U32() != Crc32c(body)) return damaged;
  rdma::Reader reader(body);
  Get get(&reader);
  StoredFile stored;
  get(stored.file, stored.names, stored.kept_until_nanos, stored.replaced);
  if (!get.Finished()) return damaged;
  return stored;
}

}  // namespace kvcfs::meta
