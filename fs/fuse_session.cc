#include "fs/fuse_session.h"

#ifdef KVCFS_FUSE_CLASSIC_ONLY
#define FUSE_USE_VERSION FUSE_MAKE_VERSION(3, 14)
#else
#define FUSE_USE_VERSION FUSE_MAKE_VERSION(3, 17)
#endif
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/log.h"
#include "fs/about_to_block.h"
#include "fs/caller_cpu.h"
#include "fs/fuse_metrics.h"
#include "fs/fuse_quick.h"

#ifndef FUSE_DEV_IOC_BACKING_OPEN
// Source: include/uapi/linux/fuse.h of Linux 6.9; Debian 12's headers are older.
// NOLINTNEXTLINE(readability-identifier-naming): the kernel's name.
struct fuse_backing_map {
  int32_t fd;
  uint32_t flags;
  uint64_t padding;
};
#define FUSE_DEV_IOC_BACKING_OPEN _IOW(FUSE_DEV_IOC_MAGIC, 1, struct fuse_backing_map)
#define FUSE_DEV_IOC_BACKING_CLOSE _IOW(FUSE_DEV_IOC_MAGIC, 2, uint32_t)
#endif
#ifndef FUSE_DEV_IOC_MAGIC
#define FUSE_DEV_IOC_MAGIC 229
#endif

namespace kvcfs::fs {
namespace {

constexpr int kNotifyResend = 7;    // FUSE_NOTIFY_RESEND, 6.9
constexpr int kNotifyIncEpoch = 8;  // FUSE_NOTIFY_INC_EPOCH, 6.16
constexpr size_t kWriteMax = 1 << 20;
constexpr size_t kBufferBytes = kWriteMax + (64 << 10);
// Waiting in /dev/fuse at once. The kernel wakes them in turn: with two, the RELEASE of a close()
// and the OPEN behind it wake both, and all calls find the caches full of the other's stack.
constexpr unsigned kReadersMax = 1;
constexpr unsigned kParkedMax = 14;  // threads that blocking calls have left behind; others end

// Where a thread reads calls into: one huge page, so that the kernel pins it at once. Each page is
// there before the first read: one that the kernel had to make while this process is being killed,
// it would not make, and the caller would get EIO instead of waiting for the next worker
// (fuse_copy_fill in fs/fuse/dev.c).
class Buffer {
 public:
  Buffer() : memory_(static_cast<char*>(std::aligned_alloc(kHugePage, kHugePage))) {
    KVC_CHECK(memory_ != nullptr);
    ::madvise(memory_, kHugePage, MADV_HUGEPAGE);  // nothing is lost where there is none
    std::memset(memory_, 0, kBufferBytes);
  }
  ~Buffer() { std::free(memory_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  char* data() const { return memory_; }
  static constexpr size_t size() { return kBufferBytes; }

 private:
  static constexpr size_t kHugePage = 2 << 20;
  static_assert(kBufferBytes <= kHugePage);
  char* memory_;
};

thread_local uint64_t t_unique = 0;
thread_local std::chrono::steady_clock::time_point t_taken;
thread_local bool t_swallow_reply = false;  // while INIT is replayed
thread_local std::vector<std::byte> t_read_buffer;

FuseSession* SessionOf(fuse_req_t request) {
  return static_cast<FuseSession*>(fuse_req_userdata(request));
}

// How long a call keeps its thread, unless it says AboutToBlock().
enum class Length {
  kShort,  // the next call may wait for it
  kCopy,   // moves up to kWriteMax bytes: another thread is worth waking for a call that waits
           // already
  kLong,   // walks trees, or always waits for a disk: another thread takes over at once
};

Length LengthOf(uint32_t opcode) {
  switch (opcode) {
    case FUSE_LOOKUP:
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_GETATTR:
    case FUSE_OPEN:
    case FUSE_CREATE:
    case FUSE_FLUSH:
    case FUSE_RELEASE:
    case FUSE_GETXATTR:
    case FUSE_OPENDIR:
    case FUSE_RELEASEDIR:
      return Length::kShort;
    case FUSE_READ:
    case FUSE_WRITE:
      return Length::kCopy;
    default:
      return Length::kLong;
  }
}

Caller CallerOf(fuse_req_t request) {
  const fuse_ctx* context = fuse_req_ctx(request);
  return fs::CallerOf(context->uid, context->gid, context->pid, t_unique);
}

std::span<std::byte> ReadBuffer(size_t size) {
  if (t_read_buffer.size() < size) t_read_buffer.resize(size);
  return {t_read_buffer.data(), size};
}

// Answers exactly once; EIO if forgotten. Counts and times the call.
class Reply {
 public:
  Reply(fuse_req_t request, FuseOp op) : request_(request), timer_(op, t_taken) {}
  ~Reply() {
    if (request_ != nullptr) Error(EIO);
  }
  Reply(const Reply&) = delete;
  Reply& operator=(const Reply&) = delete;

  void Error(int number) {
    if (number != 0) timer_.Failed(number);
    fuse_reply_err(Take(), number);
  }
  void Status(const FsStatus& status) { Error(status ? 0 : status.error().value); }
  void Entry(const FsResult<EntryReply>& entry) {
    if (!entry) return Error(entry.error().value);
    const fuse_entry_param parameters = Parameters(*entry);
    fuse_reply_entry(Take(), &parameters);
  }
  void Attr(const FsResult<AttrReply>& attr) {
    if (!attr) return Error(attr.error().value);
    fuse_reply_attr(Take(), &attr->attr, attr->timeout_s);
  }
  void Bytes(std::span<const std::byte> bytes) {
    timer_.Moved(bytes.size());
    fuse_reply_buf(Take(), reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  void Written(const FsResult<size_t>& count) {
    if (!count) return Error(count.error().value);
    timer_.Moved(*count);
    fuse_reply_write(Take(), *count);
  }
  fuse_req_t Take() { return std::exchange(request_, nullptr); }

  static fuse_entry_param Parameters(const EntryReply& entry) {
    fuse_entry_param parameters{};
    parameters.ino = entry.ino;
    parameters.attr = entry.attr;
    parameters.attr_timeout = entry.attr_timeout_s;
    parameters.entry_timeout = entry.entry_timeout_s;
    return parameters;
  }

 private:
  fuse_req_t request_;
  FuseOpTimer timer_;
};

class DirBuffer final : public DirSink {
 public:
  DirBuffer(fuse_req_t request, size_t size, bool plus) : request_(request), plus_(plus) {
    bytes_.resize(size);
  }
  bool plus() const override { return plus_; }
  bool Add(const std::string& name, const EntryReply& entry, uint64_t next_cookie) override {
    char* at = bytes_.data() + used_;
    const size_t left = bytes_.size() - used_;
    const auto offset = static_cast<off_t>(next_cookie);
    size_t need = 0;
    if (plus_) {
      fuse_entry_param parameters = Reply::Parameters(entry);
      if (name == "." || name == "..") parameters.ino = 0;  // no lookup is counted
      need = fuse_add_direntry_plus(request_, at, left, name.c_str(), &parameters, offset);
    } else {
      need = fuse_add_direntry(request_, at, left, name.c_str(), &entry.attr, offset);
    }
    if (need > left) return false;
    used_ += need;
    return true;
  }
  std::span<const std::byte> bytes() const {
    return std::as_bytes(std::span(bytes_.data(), used_));
  }

 private:
  fuse_req_t request_;
  bool plus_;
  std::vector<char> bytes_;
  size_t used_ = 0;
};

void SetOpen(const OpenReply& open, int flags, fuse_file_info* info) {
  const OpenAnswer answer = AnswerOf(open, flags);
  info->fh = open.handle;
  info->keep_cache = answer.keep_cache;
  info->direct_io = answer.direct_io;
  info->parallel_direct_writes = answer.parallel_direct_writes;
  info->noflush = answer.no_flush;
#ifndef KVCFS_FUSE_CLASSIC_ONLY
  if (answer.backing_id != 0) info->backing_id = static_cast<int>(answer.backing_id);
#endif
}

}  // namespace

struct FuseSession::Door {
  fuse_session* session = nullptr;
  // Guarded by mutex_: threads that wait for work without reading, and how many are called for.
  std::condition_variable_any called;
  unsigned parked = 0, calls = 0;
  std::atomic<bool> polling{false};  // one thread at a time

  static void AddReader(FuseSession& self);        // a parked thread, or a new one
  static bool BecomeReader(FuseSession& self);     // at once, or when called; false: end
  static bool CallWaits(const FuseSession& self);  // in /dev/fuse, at this moment
  static void PollForRequest(FuseSession& self);   // at most as long as the option says

  static Filesystem& Fs(fuse_req_t request) { return *SessionOf(request)->filesystem_; }

  static void Init(void* self, fuse_conn_info* connection) {
    auto* session = static_cast<FuseSession*>(self);
    connection->max_write = kWriteMax;
    connection->max_background = 128;
    connection->congestion_threshold = 96;
    connection->time_gran = 1;
#ifdef KVCFS_FUSE_CLASSIC_ONLY
    const auto want = [&](unsigned flag) { connection->want |= connection->capable & flag; };
    const auto unwant = [&](unsigned flag) { connection->want &= ~flag; };
#else
    const auto want = [&](uint64_t flag) { fuse_set_feature_flag(connection, flag); };
    const auto unwant = [&](uint64_t flag) { fuse_unset_feature_flag(connection, flag); };
#endif
    want(FUSE_CAP_ASYNC_READ);
    want(FUSE_CAP_ATOMIC_O_TRUNC);
    want(FUSE_CAP_PARALLEL_DIROPS);
    want(FUSE_CAP_READDIRPLUS);
    want(FUSE_CAP_READDIRPLUS_AUTO);
    want(FUSE_CAP_IOCTL_DIR);
    // Only this host changes what it caches, and says so.
    want(FUSE_CAP_EXPLICIT_INVAL_DATA);
    unwant(FUSE_CAP_AUTO_INVAL_DATA);
    unwant(FUSE_CAP_WRITEBACK_CACHE);  // excludes passthrough
    unwant(FUSE_CAP_SPLICE_READ);
    unwant(FUSE_CAP_SPLICE_WRITE);
    unwant(FUSE_CAP_SPLICE_MOVE);
    unwant(FUSE_CAP_HANDLE_KILLPRIV);
#ifndef KVCFS_FUSE_CLASSIC_ONLY
    connection->no_interrupt = 1;
    fuse_set_feature_flag(connection, FUSE_CAP_DIRECT_IO_ALLOW_MMAP);
    if (session->options_.passthrough != FuseSessionOptions::Passthrough::kOff) {
      session->passthrough_ = fuse_set_feature_flag(connection, FUSE_CAP_PASSTHROUGH);
      connection->max_backing_stack_depth = 1;
      if (!session->passthrough_) session->reason_ = "this kernel has none (6.9 does)";
    } else {
      session->reason_ = "switched off by fs.passthrough";
    }
#else
    session->reason_ = "built with a libfuse older than 3.17";
#endif
  }

  static void Lookup(fuse_req_t request, fuse_ino_t parent, const char* name) {
    Reply(request, FuseOp::kLookup).Entry(Fs(request).Lookup(CallerOf(request), parent, name));
  }
  static void Forget(fuse_req_t request, fuse_ino_t ino, uint64_t lookups) {
    Fs(request).Forget(ino, lookups);
    fuse_reply_none(request);
  }
  static void ForgetMulti(fuse_req_t request, size_t count, fuse_forget_data* forgets) {
    for (size_t i = 0; i < count; ++i) Fs(request).Forget(forgets[i].ino, forgets[i].nlookup);
    fuse_reply_none(request);
  }
  static void GetAttr(fuse_req_t request, fuse_ino_t ino, fuse_file_info*) {
    Reply(request, FuseOp::kGetAttr).Attr(Fs(request).GetAttr(CallerOf(request), ino));
  }
  static void SetAttr(fuse_req_t request, fuse_ino_t ino, struct stat* attr, int to_set,
                      fuse_file_info* info) {
    Reply(request, FuseOp::kSetAttr)
        .Attr(Fs(request).SetAttr(CallerOf(request), ino, *attr, to_set,
                                  info != nullptr ? info->fh : 0));
  }
  static void ReadLink(fuse_req_t request, fuse_ino_t ino) {
    Reply reply(request, FuseOp::kReadLink);
    const FsResult<std::string> target = Fs(request).ReadLink(ino);
    if (!target) return reply.Error(target.error().value);
    fuse_reply_readlink(reply.Take(), target->c_str());
  }
  static void MakeNode(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode,
                       dev_t device) {
    Reply(request, FuseOp::kMakeNode)
        .Entry(Fs(request).MakeNode(CallerOf(request), parent, name, mode, device));
  }
  static void MakeDirectory(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode) {
    Reply(request, FuseOp::kMakeDirectory)
        .Entry(Fs(request).MakeDirectory(CallerOf(request), parent, name, mode));
  }
  static void MakeSymlink(fuse_req_t request, const char* target, fuse_ino_t parent,
                          const char* name) {
    Reply(request, FuseOp::kMakeSymlink)
        .Entry(Fs(request).MakeSymlink(CallerOf(request), parent, name, target));
  }
  static void Link(fuse_req_t request, fuse_ino_t ino, fuse_ino_t parent, const char* name) {
    Reply(request, FuseOp::kLink).Entry(Fs(request).Link(CallerOf(request), ino, parent, name));
  }
  static void Unlink(fuse_req_t request, fuse_ino_t parent, const char* name) {
    Reply(request, FuseOp::kUnlink).Status(Fs(request).Unlink(CallerOf(request), parent, name));
  }
  static void RemoveDirectory(fuse_req_t request, fuse_ino_t parent, const char* name) {
    Reply(request, FuseOp::kRemoveDirectory)
        .Status(Fs(request).RemoveDirectory(CallerOf(request), parent, name));
  }
  static void Rename(fuse_req_t request, fuse_ino_t parent, const char* name, fuse_ino_t new_parent,
                     const char* new_name, unsigned flags) {
    Reply(request, FuseOp::kRename)
        .Status(Fs(request).Rename(CallerOf(request), parent, name, new_parent, new_name, flags));
  }

  static void Create(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode,
                     fuse_file_info* info) {
    Reply reply(request, FuseOp::kCreate);
    EntryReply entry;
    const FsResult<OpenReply> open =
        Fs(request).Create(CallerOf(request), parent, name, mode, info->flags, &entry);
    if (!open) return reply.Error(open.error().value);
    SetOpen(*open, info->flags, info);
    const fuse_entry_param parameters = Reply::Parameters(entry);
    Filesystem& fs = Fs(request);
    // ENOENT: the call was interrupted, nobody will release it.
    if (fuse_reply_create(reply.Take(), &parameters, info) == -ENOENT) {
      fs.Release(entry.ino, open->handle);
    }
  }
  static void Read(fuse_req_t request, fuse_ino_t ino, size_t size, off_t offset,
                   fuse_file_info* info) {
    Reply reply(request, FuseOp::kRead);
    const auto bytes =
        Fs(request).Read(ino, info->fh, static_cast<uint64_t>(offset), size, ReadBuffer(size));
    if (!bytes) return reply.Error(bytes.error().value);
    reply.Bytes(*bytes);
  }
  static void Write(fuse_req_t request, fuse_ino_t ino, const char* data, size_t size, off_t offset,
                    fuse_file_info* info) {
    Reply(request, FuseOp::kWrite)
        .Written(Fs(request).Write(ino, info->fh, static_cast<uint64_t>(offset),
                                   std::as_bytes(std::span(data, size)), false));
  }
  static void Flush(fuse_req_t request, fuse_ino_t ino, fuse_file_info* info) {
    Reply(request, FuseOp::kFlush).Status(Fs(request).Flush(CallerOf(request), ino, info->fh));
  }
  static void Fsync(fuse_req_t request, fuse_ino_t ino, int data_only, fuse_file_info* info) {
    Reply(request, FuseOp::kFsync).Status(Fs(request).Fsync(ino, info->fh, data_only != 0));
  }
  static void OpenDirectory(fuse_req_t request, fuse_ino_t ino, fuse_file_info* info) {
    Reply reply(request, FuseOp::kOpenDirectory);
    const FsStatus opened = Fs(request).OpenDirectory(ino);
    if (!opened) return reply.Error(opened.error().value);
    info->fh = 0;
    fuse_reply_open(reply.Take(), info);
  }
  static void List(fuse_req_t request, fuse_ino_t ino, size_t size, off_t offset, bool plus) {
    Reply reply(request, plus ? FuseOp::kReadDirectoryPlus : FuseOp::kReadDirectory);
    DirBuffer buffer(request, size, plus);
    const FsStatus read =
        Fs(request).ReadDirectory(CallerOf(request), ino, static_cast<uint64_t>(offset), buffer);
    if (!read) return reply.Error(read.error().value);
    reply.Bytes(buffer.bytes());
  }
  static void ReadDirectory(fuse_req_t request, fuse_ino_t ino, size_t size, off_t offset,
                            fuse_file_info*) {
    List(request, ino, size, offset, false);
  }
  static void ReadDirectoryPlus(fuse_req_t request, fuse_ino_t ino, size_t size, off_t offset,
                                fuse_file_info*) {
    List(request, ino, size, offset, true);
  }
  static void ReleaseDirectory(fuse_req_t request, fuse_ino_t, fuse_file_info*) {
    Reply(request, FuseOp::kReleaseDirectory).Error(0);
  }
  static void FsyncDirectory(fuse_req_t request, fuse_ino_t ino, int, fuse_file_info*) {
    Reply(request, FuseOp::kFsyncDirectory).Status(Fs(request).FsyncDirectory(ino));
  }
  static void StatFs(fuse_req_t request, fuse_ino_t) {
    Reply reply(request, FuseOp::kStatFs);
    const struct statvfs info = Fs(request).StatFs();
    fuse_reply_statfs(reply.Take(), &info);
  }
  static void SetXattr(fuse_req_t request, fuse_ino_t ino, const char* name, const char* value,
                       size_t size, int flags) {
    Reply(request, FuseOp::kSetXattr)
        .Status(
            Fs(request).SetXattr(CallerOf(request), ino, name, std::string(value, size), flags));
  }
  static void ReplyText(Reply& reply, const std::string& text, size_t size) {
    if (size == 0) {
      fuse_reply_xattr(reply.Take(), text.size());
    } else if (text.size() > size) {
      reply.Error(ERANGE);
    } else {
      reply.Bytes(std::as_bytes(std::span(text)));
    }
  }
  static void GetXattr(fuse_req_t request, fuse_ino_t ino, const char* name, size_t size) {
    Reply reply(request, FuseOp::kGetXattr);
    const FsResult<std::string> value = Fs(request).GetXattr(ino, name);
    if (!value) return reply.Error(value.error().value);
    ReplyText(reply, *value, size);
  }
  static void ListXattr(fuse_req_t request, fuse_ino_t ino, size_t size) {
    Reply reply(request, FuseOp::kListXattr);
    const auto names = Fs(request).ListXattrs(ino);
    if (!names) return reply.Error(names.error().value);
    std::string text;
    for (const std::string& name : *names) text.append(name).push_back('\0');
    ReplyText(reply, text, size);
  }
  static void RemoveXattr(fuse_req_t request, fuse_ino_t ino, const char* name) {
    Reply(request, FuseOp::kRemoveXattr)
        .Status(Fs(request).RemoveXattr(CallerOf(request), ino, name));
  }
  static void Ioctl(fuse_req_t request, fuse_ino_t ino, unsigned command, void*, fuse_file_info*,
                    unsigned, const void* in, size_t in_bytes, size_t out_bytes) {
    Reply reply(request, FuseOp::kIoctl);
    const auto answer = Fs(request).Ioctl(CallerOf(request), ino, command,
                                          {static_cast<const std::byte*>(in), in_bytes}, out_bytes);
    if (!answer) return reply.Error(answer.error().value);
    fuse_reply_ioctl(reply.Take(), 0, answer->data(), std::min(out_bytes, answer->size()));
  }
  static void Allocate(fuse_req_t request, fuse_ino_t ino, int mode, off_t offset, off_t length,
                       fuse_file_info* info) {
    Reply(request, FuseOp::kAllocate)
        .Status(Fs(request).Allocate(ino, info->fh, mode, static_cast<uint64_t>(offset),
                                     static_cast<uint64_t>(length)));
  }
  static void Seek(fuse_req_t request, fuse_ino_t ino, off_t offset, int whence,
                   fuse_file_info* info) {
    Reply reply(request, FuseOp::kSeek);
    const auto found = Fs(request).Seek(ino, info->fh, static_cast<uint64_t>(offset), whence);
    if (!found) return reply.Error(found.error().value);
    fuse_reply_lseek(reply.Take(), static_cast<off_t>(*found));
  }
  static void CopyRange(fuse_req_t request, fuse_ino_t from, off_t from_offset, fuse_file_info*,
                        fuse_ino_t to, off_t to_offset, fuse_file_info*, size_t length, int) {
    Reply(request, FuseOp::kCopyRange)
        .Written(Fs(request).CopyRange(from, static_cast<uint64_t>(from_offset), to,
                                       static_cast<uint64_t>(to_offset), length));
  }

  static fuse_lowlevel_ops Ops() {
    fuse_lowlevel_ops ops{};
    ops.init = Init;
    ops.lookup = Lookup;
    ops.forget = Forget;
    ops.forget_multi = ForgetMulti;
    ops.getattr = GetAttr;
    ops.setattr = SetAttr;
    ops.readlink = ReadLink;
    ops.mknod = MakeNode;
    ops.mkdir = MakeDirectory;
    ops.symlink = MakeSymlink;
    ops.link = Link;
    ops.unlink = Unlink;
    ops.rmdir = RemoveDirectory;
    ops.rename = Rename;
    ops.create = Create;
    ops.read = Read;
    ops.write = Write;
    ops.flush = Flush;
    ops.fsync = Fsync;
    ops.opendir = OpenDirectory;
    ops.readdir = ReadDirectory;
    ops.readdirplus = ReadDirectoryPlus;
    ops.releasedir = ReleaseDirectory;
    ops.fsyncdir = FsyncDirectory;
    ops.statfs = StatFs;
    ops.setxattr = SetXattr;
    ops.getxattr = GetXattr;
    ops.listxattr = ListXattr;
    ops.removexattr = RemoveXattr;
    ops.ioctl = Ioctl;
    ops.fallocate = Allocate;
    ops.lseek = Seek;
    ops.copy_file_range = CopyRange;
    return ops;
  }
};

Result<std::unique_ptr<FuseSession>> FuseSession::Create(const FuseSessionOptions& options) {
  std::unique_ptr<FuseSession> self(new FuseSession);
  self->options_ = options;
  self->door_ = std::make_unique<Door>();
  char program[] = "kvcfs";
  char* arguments[] = {program, nullptr};
  fuse_args args = FUSE_ARGS_INIT(1, arguments);
  const fuse_lowlevel_ops ops = Door::Ops();
  self->door_->session = fuse_session_new(&args, &ops, sizeof ops, self.get());
  fuse_opt_free_args(&args);
  if (self->door_->session == nullptr) return Error{Code::kInternal, "libfuse: no session"};
  fuse_custom_io io{};
  io.writev = [](int fd, iovec* parts, int count, void*) -> ssize_t {
    if (!t_swallow_reply) return ::writev(fd, parts, count);
    ssize_t bytes = 0;
    for (int i = 0; i < count; ++i) bytes += static_cast<ssize_t>(parts[i].iov_len);
    return bytes;
  };
  io.read = [](int fd, void* buffer, size_t size, void*) { return ::read(fd, buffer, size); };
  // libfuse closes the descriptor it was given.
  const int own = ::fcntl(options.device_fd, F_DUPFD_CLOEXEC, 3);
#ifdef KVCFS_FUSE_CLASSIC_ONLY
  const int taken = own < 0 ? -1 : fuse_session_custom_io(self->door_->session, &io, own);
#else
  const int taken =
      own < 0 ? -1 : fuse_session_custom_io(self->door_->session, &io, sizeof io, own);
#endif
  if (taken != 0) {
    return Error{Code::kInternal, "libfuse: cannot use the descriptor of /dev/fuse"};
  }

  std::vector<char> buffer(kBufferBytes);
  size_t bytes = 0;
  if (options.resumed && options.init->bytes > 0) {
    bytes = options.init->bytes;
    std::memcpy(buffer.data(), options.init->text, bytes);
    t_swallow_reply = true;
  } else {
    for (;;) {
      const ssize_t got = ::read(options.device_fd, buffer.data(), buffer.size());
      if (got > 0) {
        bytes = static_cast<size_t>(got);
        break;
      }
      if (errno == ENODEV) return Error{Code::kCancelled, "unmounted before it began"};
      if (errno != EINTR && errno != EAGAIN) return ErrnoError(errno, "read", "/dev/fuse");
    }
    if (bytes <= sizeof options.init->text) {
      std::memcpy(options.init->text, buffer.data(), bytes);
      options.init->bytes = static_cast<uint32_t>(bytes);
    }
  }
  fuse_buf message{};
  message.mem = buffer.data();
  message.size = bytes;
  fuse_session_process_buf(self->door_->session, &message);
  t_swallow_reply = false;
  if (self->passthrough_) self->ProbePassthrough();
  if (options.passthrough == FuseSessionOptions::Passthrough::kOn && !self->passthrough_) {
    return Error{Code::kUnsupported,
                 "fs.passthrough=on, but it is not to be had: " + self->reason_};
  }
  self->epoch_supported_ = self->Notify(kNotifyIncEpoch);
  return self;
}

FuseSession::~FuseSession() {
  {
    MutexLock lock(notify_mutex_);
    over_ = true;
  }
  notify_changed_.notify_all();
  if (notifier_.joinable()) notifier_.join();
  if (door_ != nullptr && door_->session != nullptr) fuse_session_destroy(door_->session);
}

bool FuseSession::BuiltWithPassthrough() {
#ifdef KVCFS_FUSE_CLASSIC_ONLY
  return false;
#else
  return true;
#endif
}

void FuseSession::ProbePassthrough() {
  const Fd file(::open(options_.probe_directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  const Result<uint32_t> id =
      file.valid() ? OpenBacking(file.get())
                   : Result<uint32_t>(ErrnoError(errno, "open", options_.probe_directory));
  if (id.ok()) {
    CloseBacking(*id);
    reason_ = "kernel and libfuse have it";
  } else {
    passthrough_ = false;
    reason_ = id.error().text + "; CAP_SYS_ADMIN is needed";
  }
}

Result<uint32_t> FuseSession::OpenBacking(int fd) {
  fuse_backing_map map{};
  map.fd = fd;
  const int id = ::ioctl(options_.device_fd, FUSE_DEV_IOC_BACKING_OPEN, &map);
  if (id <= 0) return ErrnoError(errno, "FUSE_DEV_IOC_BACKING_OPEN");
  return static_cast<uint32_t>(id);
}

void FuseSession::CloseBacking(uint32_t id) {
  ::ioctl(options_.device_fd, FUSE_DEV_IOC_BACKING_CLOSE, &id);
}

bool FuseSession::Notify(int code) {
  fuse_out_header header{};
  header.len = sizeof header;
  header.error = code;
  return ::write(options_.device_fd, &header, sizeof header) == sizeof header;
}

void FuseSession::BumpEpoch() {
  if (epoch_supported_) Notify(kNotifyIncEpoch);
}

void FuseSession::InvalidateInode(Ino ino) {
  MutexLock lock(notify_mutex_);
  invalidations_.push_back({ino, {}});
  notify_changed_.notify_one();
}

void FuseSession::InvalidateEntry(Ino parent, const std::string& name) {
  MutexLock lock(notify_mutex_);
  invalidations_.push_back({parent, name});
  notify_changed_.notify_one();
}

void FuseSession::RunNotifier() {
  SetThreadName("notify");
  for (;;) {
    Invalidation next;
    {
      MutexLock lock(notify_mutex_);
      notify_changed_.wait(lock.native(),
                           [&]() KVC_NO_ANALYSIS { return over_ || !invalidations_.empty(); });
      if (over_) return;
      next = std::move(invalidations_.front());
      invalidations_.pop_front();
    }
    if (next.name.empty()) {
      fuse_lowlevel_notify_inval_inode(door_->session, next.ino, 0, 0);
    } else {
      fuse_lowlevel_notify_inval_entry(door_->session, next.ino, next.name.c_str(),
                                       next.name.size());
    }
  }
}

void FuseSession::SpawnThread() {
  ++threads_;
  ++idle_;
  std::thread([this] { ServeThread(); }).detach();
}

void FuseSession::Door::AddReader(FuseSession& self) {
  MutexLock lock(self.mutex_);
  if (self.over_) return;
  if (self.door_->parked > self.door_->calls) {
    ++self.door_->calls;
    ++self.idle_;
    self.door_->called.notify_one();
  } else if (self.threads_ < self.options_.threads_max) {
    self.SpawnThread();
  }
}

bool FuseSession::Door::BecomeReader(FuseSession& self) {
  unsigned readers = self.idle_.load();
  while (readers < kReadersMax) {
    if (self.idle_.compare_exchange_weak(readers, readers + 1)) return true;
  }
  MutexLock lock(self.mutex_);
  if (self.over_ || self.door_->parked >= kParkedMax) return false;
  ++self.door_->parked;
  self.door_->called.wait(lock.native(),
                          [&]() KVC_NO_ANALYSIS { return self.over_ || self.door_->calls > 0; });
  --self.door_->parked;
  if (self.door_->calls == 0) return false;  // over
  --self.door_->calls;
  return true;
}

bool FuseSession::Door::CallWaits(const FuseSession& self) {
  pollfd device{.fd = self.options_.device_fd, .events = POLLIN, .revents = 0};
  return ::poll(&device, 1, 0) > 0;
}

void FuseSession::Door::PollForRequest(FuseSession& self) {
  if (self.options_.poll.count() == 0 || self.door_->polling.exchange(true)) return;
  // A client that needs this CPU gets it; what is saved is waking a halted one.
  const auto until = std::chrono::steady_clock::now() + self.options_.poll;
  pollfd device{.fd = self.options_.device_fd, .events = POLLIN, .revents = 0};
  while (!self.over_ && ::poll(&device, 1, 0) == 0 && std::chrono::steady_clock::now() < until) {
    ::sched_yield();
  }
  self.door_->polling = false;
}

void FuseSession::ServeThread() {
  SetThreadName("fuse");
  {
    MutexLock lock(mutex_);
    serving_.insert(pthread_self());
  }
  const Buffer buffer;
  CallerFollower follower(cpus_);
  for (bool reader = true; reader && !over_;) {
    Door::PollForRequest(*this);
    const ssize_t got = ::read(options_.device_fd, buffer.data(), buffer.size());
    if (got < 0) {
      if (errno == EINTR || errno == EAGAIN || errno == ENOENT) continue;
      if (errno != ENODEV) KVC_LOG(Error, "reading /dev/fuse failed", "errno={}", errno);
      over_ = true;
      break;
    }
    const auto* header = reinterpret_cast<const fuse_in_header*>(buffer.data());
    // Of who closes a file nothing is looked up: see DiesBySignal in block_writer.cc.
    const auto caller = static_cast<pid_t>(header->opcode == FUSE_FLUSH ? 0 : header->pid);
    t_taken = std::chrono::steady_clock::now();
    if (options_.follow_caller) follower.Took(caller);
    if (warmer_ != nullptr) warmer_->Called(caller, t_taken);
    if (idle_.fetch_sub(1) == 1) {
      // Nobody is left to take the next call.
      t_blocking_hook = {[](void* self) { Door::AddReader(*static_cast<FuseSession*>(self)); },
                         this};
      const Length length = LengthOf(header->opcode);
      if (length == Length::kLong || (length == Length::kCopy && Door::CallWaits(*this))) {
        AboutToBlock();
      }
    }
    t_unique = header->unique;
    const std::span request(buffer.data(), static_cast<size_t>(got));
    if (!AnswerQuickly(*filesystem_, options_.device_fd, std::as_bytes(request), t_taken)) {
      fuse_buf message{};
      message.mem = request.data();
      message.size = request.size();
      fuse_session_process_buf(door_->session, &message);
    }
    t_blocking_hook = {};
    reader = Door::BecomeReader(*this);
  }
  MutexLock lock(mutex_);
  serving_.erase(pthread_self());
  --threads_;
  ended_.notify_all();
  if (over_) door_->called.notify_all();
}

void FuseSession::StopServing() {
  over_ = true;
  MutexLock lock(mutex_);
  while (threads_ > 0) {
    // Reading /dev/fuse ends only by a request or a signal.
    for (const pthread_t thread : serving_) pthread_kill(thread, SIGUSR1);
    door_->called.notify_all();
    ended_.wait_for(lock.native(), std::chrono::milliseconds(10));
  }
}

void FuseSession::Serve(Filesystem& filesystem) {
  filesystem_ = &filesystem;
  CPU_ZERO(&cpus_);
  if (options_.follow_caller) ::sched_getaffinity(0, sizeof cpus_, &cpus_);
  if (cpu_set_t all; options_.keep_awake && ::sched_getaffinity(0, sizeof all, &all) == 0) {
    warmer_ = std::make_unique<CpuWarmer>(all);
  }
  struct sigaction wake {};
  wake.sa_handler = [](int) {};  // no SA_RESTART: read() returns EINTR
  ::sigaction(SIGUSR1, &wake, nullptr);
  notifier_ = std::thread([this] { RunNotifier(); });
  if (options_.resumed && !Notify(kNotifyResend)) {
    KVC_LOG(Warn, "the kernel cannot send unanswered calls again (6.9 can); some may hang",
            "errno={}", errno);
  }
  MutexLock lock(mutex_);
  SpawnThread();
  SpawnThread();
  ended_.wait(lock.native(), [&]() KVC_NO_ANALYSIS { return over_ && threads_ == 0; });
}

}  // namespace kvcfs::fs
