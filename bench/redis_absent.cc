// Built without hiredis: says so where Redis would be measured.
#include "bench/index_backend.h"

namespace kvcfs::bench {

std::vector<BackendKind> RedisBackends() {
  return {{"redis-get, redis-pipeline, redis-mget, redis-range",
           "tcp",
           "cold",
           {KeyMode::kSha256},
           [](const IndexLoad&, KeyMode) -> Result<std::unique_ptr<IndexBackend>> {
             return Error{Code::kUnsupported, "built without libhiredis-dev"};
           }}};
}

}  // namespace kvcfs::bench
