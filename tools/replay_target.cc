#include "tools/replay_target.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <filesystem>

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/size.h"

namespace kvcfs::tools {
namespace {

constexpr char kBlockBytesAttribute[] = "user.kvc.block_bytes";

class MountedTarget final : public ReplayTarget {
 public:
  explicit MountedTarget(NamespaceClient client, Fd by_key)
      : client_(std::move(client)), by_key_(std::move(by_key)) {}

  Result<MatchAnswer> Match(std::span<const BlockKey> keys) override { return client_.Match(keys); }

  CallOutcome Read(const BlockKey& key, std::span<std::byte> out, uint64_t* length,
                   const std::function<void()>& read_done) override {
    const Fd fd(::openat(by_key_.get(), key.ToHex().c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd.valid()) return {errno, "open", 0};
    // One read, as engines do: they take a short one for a broken file.
    const ssize_t got = ::pread(fd.get(), out.data(), out.size(), 0);
    if (got < 0) return {errno, "read", 0};
    read_done();
    const auto have = static_cast<size_t>(got);
    // One byte more says whether this was the end; st_size would ask the daemon instead of the
    // bytes.
    std::byte more{};
    const ssize_t past = ::pread(fd.get(), &more, 1, got);
    if (past < 0) return {errno, "read", have};
    if (past > 0 && have < out.size()) return {EIO, "short read", have};
    *length = have + static_cast<uint64_t>(past);
    return {0, "", have};
  }

  CallOutcome Write(const BlockKey* parent, const BlockKey& key,
                    std::span<const std::byte> bytes) override {
    const std::string name =
        fmt::format("{}/{}", parent == nullptr ? "root" : parent->ToHex(), key.ToHex());
    Fd fd(::openat(client_.directory_fd(), name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC,
                   0644));
    if (!fd.valid()) return {errno, "create", 0};
    const ssize_t done = ::write(fd.get(), bytes.data(), bytes.size());
    if (done < 0) return {errno, "write", 0};
    // A short write would be a defect; there is no errno for it.
    if (static_cast<size_t>(done) != bytes.size()) return {EIO, "short write", 0};
    if (::close(fd.Release()) != 0) return {errno, "close", 0};
    return {0, "", bytes.size()};
  }

 private:
  NamespaceClient client_;
  Fd by_key_;
};

// 0: it has none.
uint64_t BlockBytesOf(const std::string& path) {
  std::array<char, 32> value{};
  const ssize_t length =
      ::getxattr(path.c_str(), kBlockBytesAttribute, value.data(), value.size() - 1);
  return length <= 0 ? 0 : std::strtoull(value.data(), nullptr, 10);
}

}  // namespace

Result<uint64_t> PrepareNamespace(const std::string& path, uint64_t block_bytes) {
  const std::filesystem::path whole = std::filesystem::absolute(path).lexically_normal();
  const std::string name = whole.has_filename() ? whole.string() : whole.parent_path().string();
  struct stat attributes {};
  if (::stat(name.c_str(), &attributes) != 0 && errno == ENOENT) {
    // Not a directory somewhere else by mistake.
    KVC_TRY_ASSIGN(const MountedPath parent,
                   FindMount(std::filesystem::path(name).parent_path().string()));
    if (!parent.inside.empty()) {
      return Error{Code::kInvalid, fmt::format("{} would not be a namespace; name one as {}/NAME",
                                               path, parent.mountpoint)};
    }
    if (::mkdir(name.c_str(), 0755) != 0 && errno != EEXIST) {
      return ErrnoError(errno, "make namespace", path);
    }
  }
  KVC_TRY(FindNamespace(path));
  const uint64_t present = BlockBytesOf(path);
  if (present == 0) {
    return Error{Code::kInvalid, fmt::format("{} is not a kvcfs namespace", path)};
  }
  if (block_bytes == 0 || block_bytes == present) return present;
  const std::string text = fmt::format("{}", block_bytes);
  if (::setxattr(path.c_str(), kBlockBytesAttribute, text.data(), text.size(), 0) == 0) {
    return block_bytes;
  }
  if (errno == EBUSY && block_bytes < present) return block_bytes;  // shorter blocks fit
  if (errno == EBUSY) {
    return Error{Code::kBusy,
                 fmt::format("{0} holds blocks of at most {1}, not {2}; use another namespace, or "
                             "empty this one: kvcfs drop {0}",
                             path, FormatSize(present), FormatSize(block_bytes))};
  }
  return ErrnoError(errno, fmt::format("set {}={} of", kBlockBytesAttribute, text), path);
}

Result<std::unique_ptr<ReplayTarget>> OpenReplayTarget(const std::string& path) {
  KVC_TRY_ASSIGN(NamespaceClient client, NamespaceClient::Open(path));
  Fd by_key(::openat(client.directory_fd(), "by-key", O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!by_key.valid()) return ErrnoError(errno, "open", path + "/by-key");
  return std::unique_ptr<ReplayTarget>(
      std::make_unique<MountedTarget>(std::move(client), std::move(by_key)));
}

}  // namespace kvcfs::tools
