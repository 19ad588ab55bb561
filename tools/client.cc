#include "tools/client.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <memory>

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fs/kvcfs.h"

namespace kvcfs::tools {
namespace {

constexpr size_t kMatchWriteBytes = size_t{64} << 10;

bool IsMountpoint(const std::string& directory) {
  return ::access((directory + "/.kvcfs/version").c_str(), F_OK) == 0;
}

bool IsUnsupportedIoctl(int error) {
  return error == ENOTTY || error == ENOSYS || error == EOPNOTSUPP;
}

// Takes the next word off the front of `line`; empty at its end.
std::string_view NextWord(std::string_view& line) {
  const size_t begin = std::min(line.find_first_not_of(' '), line.size());
  line.remove_prefix(begin);
  const std::string_view word = line.substr(0, line.find(' '));
  line.remove_prefix(word.size());
  return word;
}

bool ParseNumber(std::string_view word, uint64_t* value) {
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), *value);
  return error == std::errc() && end == word.data() + word.size() && !word.empty();
}

Status WriteWhole(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t done = ::write(fd, bytes.data(), bytes.size());
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return ErrnoError(errno, "write to", "match");
    bytes.remove_prefix(static_cast<size_t>(done));
  }
  return {};
}

Result<std::string> ReadToEnd(int fd) {
  std::string text;
  char piece[64 << 10];
  for (;;) {
    const ssize_t got = ::read(fd, piece, sizeof(piece));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoError(errno, "read", "match");
    if (got == 0) return text;
    text.append(piece, static_cast<size_t>(got));
  }
}

}  // namespace

Result<MountedPath> FindMount(const std::string& path) {
  std::error_code error;
  const std::filesystem::path whole = std::filesystem::canonical(path, error);
  if (error) {
    // A dead mount says ENOTCONN here.
    if (error.value() == ENOTCONN) {
      return Error{Code::kUnavailable,
                   fmt::format("{}: its kvcfs has died; `kvcfs mount {}` replaces it", path, path)};
    }
    return ErrnoError(error.value(), "cannot find", path);
  }
  for (std::filesystem::path at = whole;; at = at.parent_path()) {
    if (IsMountpoint(at.string())) {
      const std::string inside = whole.lexically_relative(at).string();
      return MountedPath{at.string(), inside == "." ? "" : inside};
    }
    if (at == at.parent_path()) break;
  }
  return Error{Code::kInvalid,
               fmt::format("{} is not in a mounted kvcfs; `kvcfs mount MNT` makes one", path)};
}

Result<MountedPath> FindMountOrNamespace(const std::string& path) {
  KVC_TRY_ASSIGN(MountedPath found, FindMount(path));
  if (found.inside.find('/') != std::string::npos || found.inside == ".kvcfs") {
    return Error{Code::kInvalid, fmt::format("{} is inside of the kvcfs at {}, but not a namespace",
                                             path, found.mountpoint)};
  }
  return found;
}

Result<MountedPath> FindNamespace(const std::string& path) {
  KVC_TRY_ASSIGN(MountedPath found, FindMountOrNamespace(path));
  if (found.inside.empty()) {
    return Error{Code::kInvalid,
                 fmt::format("{0} is a whole kvcfs; name a namespace in it, as {0}/NAME", path)};
  }
  return found;
}

std::string_view TierName(Tier tier) {
  switch (tier) {
    case Tier::kNone:
      return "none";
    case Tier::kDram:
      return "dram";
    case Tier::kNvme:
      return "nvme";
    case Tier::kPeer:
      return "peer";
  }
  return "unknown";
}

Result<MatchAnswer> ParseMatchAnswer(std::string_view text, std::span<const BlockKey> keys) {
  const auto bad = [&](std::string_view line) {
    return Error{Code::kCorrupt, fmt::format("`match` answered '{}', which cannot be", line)};
  };
  const auto next_line = [&text] {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(line.size() + 1, text.size()));
    return line;
  };
  MatchAnswer answer;
  const std::string_view head = next_line();
  std::string_view rest = head;
  uint64_t count = 0, lease_ms = 0;
  if (!ParseNumber(NextWord(rest), &count) || !ParseNumber(NextWord(rest), &lease_ms) ||
      !NextWord(rest).empty() || count > keys.size() || lease_ms > UINT32_MAX) {
    return bad(head);
  }
  answer.lease_ms = static_cast<uint32_t>(lease_ms);
  for (size_t i = 0; i < count; ++i) {
    const std::string_view line = next_line();
    rest = line;
    MatchAnswer::Block block;
    uint64_t ordinal = 0;
    const bool is_next = ParseNumber(NextWord(rest), &ordinal) && ordinal == i;
    const std::optional<BlockKey> key = BlockKey::FromHex(NextWord(rest));
    const std::string_view tier = NextWord(rest);
    if (!is_next || key != keys[i] || !ParseNumber(NextWord(rest), &block.bytes) ||
        !NextWord(rest).empty()) {
      return bad(line);
    }
    for (const Tier known : {Tier::kDram, Tier::kNvme, Tier::kPeer}) {
      if (tier == TierName(known)) block.tier = known;
    }
    answer.blocks.push_back(block);
  }
  return answer;
}

Result<NamespaceClient> NamespaceClient::Open(const std::string& path) {
  NamespaceClient client;
  client.path_ = path;
  client.directory_ = Fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!client.directory_.valid()) {
    if (errno == ENOENT) {
      return Error{Code::kNotFound,
                   fmt::format("there is no namespace {0}; `mkdir {0}` makes one", path)};
    }
    return ErrnoError(errno, "open", path);
  }
  return client;
}

Result<MatchAnswer> NamespaceClient::Match(std::span<const BlockKey> keys,
                                           const MatchOptions& options) {
  if (keys.empty()) return MatchAnswer{};
  if (has_ioctl_ && keys.size() <= KVCFS_MATCH_KEYS_MAX) {
    Result<MatchAnswer> answer = MatchByIoctl(keys, options);
    if (answer.ok() || answer.code() != Code::kUnsupported) return answer;
    has_ioctl_ = false;
  }
  return MatchByFile(keys, options);
}

Result<MatchAnswer> NamespaceClient::MatchByIoctl(std::span<const BlockKey> keys,
                                                  const MatchOptions& options) {
  kvcfs_match match;
  std::memset(&match.request, 0, offsetof(kvcfs_match_request, keys));
  match.request.count = static_cast<uint32_t>(keys.size());
  match.request.flags =
      (options.prefetch ? KVCFS_MATCH_PREFETCH : 0) | (options.lease ? 0 : KVCFS_MATCH_NOLEASE);
  for (size_t i = 0; i < keys.size(); ++i) {
    std::memcpy(match.request.keys[i], keys[i].bytes.data(), BlockKey::kBytes);
  }
  if (::ioctl(directory_.get(), KVCFS_IOC_MATCH, &match) != 0) {
    if (IsUnsupportedIoctl(errno)) return Error{Code::kUnsupported, "no ioctl"};
    return ErrnoError(errno, "match in", path_);
  }
  if (match.reply.count > keys.size()) {
    return Error{Code::kCorrupt, fmt::format("{}: match found {} of {} keys", path_,
                                             match.reply.count, keys.size())};
  }
  MatchAnswer answer;
  answer.lease_ms = match.reply.lease_ms;
  answer.blocks.resize(match.reply.count);
  for (size_t i = 0; i < match.reply.count; ++i) {
    answer.blocks[i] = {static_cast<Tier>(match.reply.tiers[i]), match.reply.bytes[i]};
  }
  return answer;
}

Result<MatchAnswer> NamespaceClient::MatchByFile(std::span<const BlockKey> keys,
                                                 const MatchOptions& options) {
  if (!match_file_.valid()) {
    match_file_ = Fd(::openat(directory_.get(), "match", O_RDWR | O_CLOEXEC));
    if (!match_file_.valid()) {
      if (errno == ENOENT) {
        return Error{Code::kInvalid, fmt::format("{} is not a kvcfs namespace", path_)};
      }
      return ErrnoError(errno, "open", path_ + "/match");
    }
  }
  std::string question;
  if (options.prefetch) question += "!prefetch\n";
  if (!options.lease) question += "!nolease\n";
  const auto ask = [&]() -> Result<MatchAnswer> {
    for (const BlockKey& key : keys) {
      question.append(key.ToHex()).append("\n");
      if (question.size() < kMatchWriteBytes) continue;
      KVC_TRY(WriteWhole(match_file_.get(), question));
      question.clear();
    }
    KVC_TRY(WriteWhole(match_file_.get(), question));
    KVC_TRY_ASSIGN(const std::string text, ReadToEnd(match_file_.get()));
    return ParseMatchAnswer(text, keys);
  };
  Result<MatchAnswer> answer = ask();
  // After a failure the conversation is anywhere: the next question opens a new one.
  if (!answer.ok()) match_file_.Reset();
  return answer;
}

Result<DropAnswer> NamespaceClient::DropByIoctl(const BlockKey& key, uint32_t flags) {
  kvcfs_drop drop{};
  std::memcpy(drop.key, key.bytes.data(), BlockKey::kBytes);
  drop.flags = flags;
  if (::ioctl(directory_.get(), KVCFS_IOC_DROP, &drop) != 0) {
    if (IsUnsupportedIoctl(errno)) {
      return Error{Code::kInvalid, fmt::format("{} is not a kvcfs namespace", path_)};
    }
    if (errno == ENOENT) {
      return Error{Code::kNotFound, fmt::format("{} is not cached in {}", key.ToHex(), path_)};
    }
    return ErrnoError(errno, "drop in", path_);
  }
  return DropAnswer{drop.dropped_blocks, drop.dropped_files};
}

Result<DropAnswer> NamespaceClient::Drop(const BlockKey& key) {
  return DropByIoctl(key, 0);
}

Result<DropAnswer> NamespaceClient::DropAll() {
  return DropByIoctl(BlockKey{}, KVCFS_DROP_ALL);
}

}  // namespace kvcfs::tools
