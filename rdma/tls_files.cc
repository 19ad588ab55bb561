#include "rdma/tls_files.h"

#include <string>
#include <utility>

#include <fmt/format.h>
#include <sys/stat.h>

#include "base/log.h"

namespace kvcfs::rdma {

Result<std::unique_ptr<TlsFiles>> TlsFiles::Open(const TlsOptions& options) {
  std::unique_ptr<TlsFiles> made(new TlsFiles(options));
  MutexLock lock(made->mutex_);
  made->used_ = made->Look();
  KVC_TRY_ASSIGN(made->context_, TlsContext::Make(options));
  return made;
}

TlsFiles::Stamps TlsFiles::Look() const {
  Stamps stamps;
  const std::string* const paths[] = {&options_.certificate, &options_.key, &options_.authority};
  for (size_t i = 0; i < stamps.size(); ++i) {
    struct stat info {};
    if (::stat(paths[i]->c_str(), &info) != 0) continue;  // zeros: not there
    stamps[i] = {.device = info.st_dev,
                 .inode = info.st_ino,
                 .bytes = static_cast<uint64_t>(info.st_size),
                 .seconds = info.st_ctim.tv_sec,
                 .nanoseconds = info.st_ctim.tv_nsec};
  }
  return stamps;
}

std::unique_ptr<TlsSession> TlsFiles::NewSession(bool server) {
  MutexLock lock(mutex_);
  // Before they are read: what is written meanwhile is seen the next time.
  const Stamps now = Look();
  if (now != used_) {
    auto renewed = TlsContext::Make(options_);
    if (renewed.ok()) {
      context_ = std::move(*renewed);
      used_ = now;
      KVC_LOG(Info, "certificates were renewed", "file={}", LogValue(options_.certificate));
    } else if (now != failed_) {
      failed_ = now;
      KVC_LOG(Error, "certificates changed and cannot be used, the former stay in use", "reason={}",
              LogValue(renewed.error().text));
    }
  }
  return context_->NewSession(server);
}

}  // namespace kvcfs::rdma
